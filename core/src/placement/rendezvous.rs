//! Sans-io: which of the live nodes a partition belongs on.

use tidegate_protocol::NodeId;

/// Of `nodes`, the one with the greatest weight for `partition` (rendezvous hashing); `None` where there is none.
///
/// All who know the same nodes name the same one. A node that comes takes only what it wins, one that goes gives up
/// only what it had: nothing else moves.
pub(crate) fn winner<'a>(nodes: impl IntoIterator<Item = &'a NodeId>, partition: u16) -> Option<&'a NodeId> {
    // Equal weights, if that ever happens, are for the names to decide.
    nodes.into_iter().max_by_key(|node| (weight(node, partition), *node))
}

/// FNV-1a over the name and the partition, then MurmurHash3's finalizer. All nodes of a cluster must agree on it, also
/// while they run different versions: it never changes.
fn weight(node: &NodeId, partition: u16) -> u64 {
    let partition = partition.to_be_bytes();
    // A name ends with what no text holds.
    super::hash(node.as_str().bytes().chain([0xff]).chain(partition))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: usize) -> Vec<NodeId> {
        (0..count).map(|n| NodeId::new(&format!("core-{n}"))).collect()
    }

    fn owners(nodes: &[NodeId]) -> Vec<&NodeId> {
        (0..256).map(|partition| winner(nodes, partition).expect("there are nodes")).collect()
    }

    #[test]
    fn weights_never_change() {
        assert_eq!(weight(&NodeId::new("core-1"), 0), WEIGHTS[0]);
        assert_eq!(weight(&NodeId::new("core-1"), 259), WEIGHTS[1]);
    }

    #[test]
    fn order_does_not_matter_and_nobody_wins_nothing() {
        let (nodes, mut reversed) = (nodes(7), nodes(7));
        reversed.reverse();
        assert_eq!(owners(&nodes), owners(&reversed));
        assert_eq!(winner(&[], 3), None);
        for node in &nodes {
            let owned = owners(&nodes).iter().filter(|owner| **owner == node).count();
            // 256 / 7 is 36.
            assert!((18..60).contains(&owned), "{node} owns {owned}");
        }
    }

    #[test]
    fn only_what_the_newcomer_wins_moves() {
        for count in 1..9 {
            let (before, after) = (nodes(count), nodes(count + 1));
            let newcomer = after.last().expect("at least one");
            let mut moved = 0;
            for (old, new) in owners(&before).into_iter().zip(owners(&after)) {
                assert!(new == old || new == newcomer, "moved from {old} to {new}");
                moved += usize::from(new != old);
            }
            let fair = 256 / (count + 1);
            assert!(moved > fair / 2 && moved < fair * 2, "{moved} of {fair} moved");
        }
    }

    const WEIGHTS: [u64; 2] = [0x0f03_42d8_b660_543f, 0xb8e1_999d_3cc9_2f21];
}
