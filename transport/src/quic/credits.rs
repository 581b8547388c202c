//! Sans-io: what may be sent to addresses that are not validated: three bytes for each that came from there (RFC 9000 §8.1).
//!
//! quinn counts, too, but lets the datagram go that oversteps: for a first flight of 1,200 bytes a probe behind a
//! short answer makes 3,746. Here that one waits until more has come; with that it goes at once, before quinn hears of it.
//! By address and not by connection: many of one address, all of which somebody else forged, get no more together.
//!
//! An address is validated when something comes from it to a connection id that only the server's answer named. Ids that
//! balancers cannot read have 53 random bits, not 64: who guesses one has quinn's own limit left before him.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::ids::LONG_HEADER;
use super::initials::{Id, LEAST_INITIAL};

/// The accounts of addresses to which handshakes are under way, at most `bound`.
#[derive(Debug)]
pub(super) struct Credits {
    bound: usize,
    life: Duration,
    accounts: HashMap<SocketAddr, Account>,
    by_end: BTreeSet<(Instant, SocketAddr)>,
}

/// Of one address.
#[derive(Debug)]
pub(super) struct Account {
    ends: Instant,
    received: u64,
    sent: u64,
    /// What clients there call themselves, at most [`CLIENTS`]. All that is sent there may be to one without a name.
    clients: Vec<Id>,
    /// What the server calls itself towards them, as many at most.
    servers: Vec<Id>,
    /// At most one datagram: quinn sends none after it before more came.
    waiting: Option<Waiting>,
}

/// A datagram that may go later.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) contents: Box<[u8]>,
    /// The address of ours that it is to go from.
    pub(super) source: Option<IpAddr>,
}

impl Credits {
    /// Accounts end after `life`: by then a handshake is complete or given up, and its last packets are out.
    pub(super) fn new(bound: usize, life: Duration) -> Self {
        Self { bound, life, accounts: HashMap::new(), by_end: BTreeSet::new() }
    }

    /// Whether one that asks now can still be answered once it is decided about. Others that were asked for meanwhile have
    /// the places that are [`KEPT`].
    pub(super) fn has_room(&mut self, now: Instant, remote: SocketAddr) -> bool {
        self.handle_timeout(now);
        match self.accounts.get(&remote) {
            Some(account) => account.clients.len() < CLIENTS,
            None => self.accounts.len() + KEPT.min(self.bound / 2) < self.bound,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }

    /// A client is going to be answered: what it calls itself, and bytes that came from it and were not counted here; `None`
    /// where that is forgotten. False where there is no room: its address must be validated first.
    pub(super) fn open(&mut self, now: Instant, remote: SocketAddr, client: Option<(Id, u64)>) -> bool {
        self.handle_timeout(now);
        let is_new = !self.accounts.contains_key(&remote);
        if is_new && self.accounts.len() >= self.bound {
            return false;
        }
        let ends = now + self.life;
        let account = self.accounts.entry(remote).or_insert_with(|| Account::new(ends));
        if account.clients.len() >= CLIENTS {
            return false;
        }
        let least = if is_new { LEAST_INITIAL as u64 } else { 0 };
        let (client, received) = client.unwrap_or((Id::EMPTY, least));
        account.clients.push(client);
        account.received += received;
        self.by_end.remove(&(account.ends, remote));
        account.ends = ends;
        self.by_end.insert((ends, remote));
        true
    }

    /// Something came. True where it was counted; and what may go now.
    pub(super) fn handle_datagram(&mut self, remote: SocketAddr, datagram: &[u8]) -> (bool, Option<Waiting>) {
        // Who is answered by connections that are established is validated.
        let Some([to, _]) = ids(datagram) else { return (false, None) };
        let Some(account) = self.accounts.get_mut(&remote) else { return (false, None) };
        if account.servers.contains(&to) {
            let waiting = account.waiting.take();
            self.by_end.remove(&(account.ends, remote));
            self.accounts.remove(&remote);
            return (true, waiting);
        }
        account.received += datagram.len() as u64;
        (true, account.release())
    }

    /// The account that what is sent there counts against: handshakes, and what clients are told that have not finished
    /// theirs. `None` where there is no limit.
    pub(super) fn account(&mut self, remote: SocketAddr, datagram: &[u8]) -> Option<&mut Account> {
        let account = self.accounts.get_mut(&remote)?;
        let (first, rest) = datagram.split_first()?;
        let is_limited = first & LONG_HEADER != 0
            || account.clients.iter().any(|client| rest.starts_with(client.as_bytes()));
        is_limited.then_some(account)
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(ends, remote)) = self.by_end.first()
            && ends <= now
        {
            self.by_end.pop_first();
            self.accounts.remove(&remote);
        }
    }
}

impl Account {
    fn new(ends: Instant) -> Self {
        Self { ends, received: 0, sent: 0, clients: Vec::new(), servers: Vec::new(), waiting: None }
    }

    /// How many bytes of these datagrams may go now: so many of them as a whole.
    pub(super) fn allowance(&self, contents: &[u8], segment: usize) -> usize {
        let left = usize::try_from(self.left()).unwrap_or(usize::MAX);
        if contents.len() <= left { contents.len() } else { left / segment * segment }
    }

    /// So many bytes of them went; the datagram behind them waits.
    pub(super) fn handle_sent(
        &mut self,
        contents: &[u8],
        segment: usize,
        went: usize,
        source: Option<IpAddr>,
    ) {
        self.sent += went as u64;
        if let Some(contents) = contents[went..].chunks(segment).next()
            && self.waiting.is_none()
        {
            self.waiting = Some(Waiting { contents: contents.into(), source });
        }
    }

    /// These datagrams tell the client what the server calls itself. Not for answers that call it what the client did.
    pub(super) fn handle_named(&mut self, contents: &[u8]) {
        if let Some([_, server]) = ids(contents)
            // Version Negotiation repeats the client's words (RFC 9000 §17.2.1).
            && contents.get(1..5) != Some(&[0; 4])
            && !self.servers.contains(&server)
            && self.servers.len() < CLIENTS
        {
            self.servers.push(server);
        }
    }

    fn left(&self) -> u64 {
        (TIMES * self.received).saturating_sub(self.sent)
    }

    fn release(&mut self) -> Option<Waiting> {
        let left = self.left();
        let waiting = self.waiting.take_if(|waiting| waiting.contents.len() as u64 <= left)?;
        self.sent += waiting.contents.len() as u64;
        Some(waiting)
    }
}

/// Whom a packet of a handshake is to and from (RFC 9000 §17.2).
fn ids(datagram: &[u8]) -> Option<[Id; 2]> {
    if datagram.first()? & LONG_HEADER == 0 {
        return None;
    }
    let mut rest = datagram.get(5..)?;
    let mut next = || {
        let (&length, bytes) = rest.split_first()?;
        let (id, behind) = bytes.split_at_checked(length.into())?;
        rest = behind;
        Id::new(id)
    };
    Some([next()?, next()?])
}

/// RFC 9000 §8.1.
const TIMES: u64 = 3;
/// Handshakes of one address.
const CLIENTS: usize = 64;
/// For addresses about which is being decided: what a door lets in within the second or so that it takes.
const KEPT: usize = 2048;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    const LIFE: Duration = Duration::from_secs(20);

    fn remote(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn id(bytes: &[u8]) -> Id {
        Id::new(bytes).unwrap()
    }

    fn long(to: &[u8], from: &[u8], length: usize) -> Vec<u8> {
        let head = [&[0xc0, 0, 0, 0, 1, to.len() as u8], to, &[from.len() as u8], from].concat();
        [head, vec![0; length]].concat()[..length].to_vec()
    }

    /// What of it goes.
    fn send(credits: &mut Credits, remote: SocketAddr, contents: &[u8], segment: usize) -> usize {
        let Some(account) = credits.account(remote, contents) else { return contents.len() };
        let went = account.allowance(contents, segment);
        account.handle_named(contents);
        account.handle_sent(contents, segment, went, None);
        went
    }

    #[test]
    fn what_oversteps_waits_for_more_to_come() {
        let mut credits = Credits::new(8, LIFE);
        assert!(credits.open(clock::now(), remote(1), Some((id(b"client"), 1200))));
        let answer = |length| long(b"client", b"server", length);
        assert_eq!(send(&mut credits, remote(1), &answer(1200), 1200), 1200);
        assert_eq!(send(&mut credits, remote(1), &answer(1346), 1200), 1346, "two at once");
        assert_eq!(send(&mut credits, remote(1), &answer(1199), 1199), 0);
        assert_eq!(send(&mut credits, remote(1), &answer(100), 100), 100);
        // Of another, to the same address, likewise; of a connection that is established without a limit.
        assert_eq!(send(&mut credits, remote(1), &long(b"other", b"another", 1000), 1000), 0);
        assert_eq!(send(&mut credits, remote(1), b"\x40other and much to tell it", 26), 26);
        assert_eq!(send(&mut credits, remote(2), &answer(5000), 1000), 5000);

        let (counted, waiting) = credits.handle_datagram(remote(1), &long(b"first", b"client", 81));
        assert!(counted && waiting.is_none(), "1,197 are left now");
        let (counted, waiting) = credits.handle_datagram(remote(1), &long(b"first", b"client", 82));
        assert!(counted);
        assert_eq!(waiting.unwrap().contents[..], answer(1199)[..]);
        let account = &credits.accounts[&remote(1)];
        assert_eq!((account.received, account.sent), (1363, 3845));
    }

    #[test]
    fn of_datagrams_that_go_at_once_those_go_for_which_there_is_credit() {
        let mut credits = Credits::new(8, LIFE);
        assert!(credits.open(clock::now(), remote(1), Some((id(b""), 1200))));
        let batch = [long(b"", b"server", 1000), vec![0x40; 3500]].concat();
        assert_eq!(send(&mut credits, remote(1), &batch, 1000), 3000);
        let account = &credits.accounts[&remote(1)];
        assert_eq!(account.waiting.as_ref().unwrap().contents[..], [0x40; 1000]);
        // All that goes to a client without a name may be its.
        assert_eq!(send(&mut credits, remote(1), &[0x40; 1000], 1000), 0);
    }

    #[test]
    fn of_a_client_that_was_forgotten_one_datagram_came() {
        let mut credits = Credits::new(8, LIFE);
        for _ in 0..2 {
            assert!(credits.open(clock::now(), remote(1), None));
            assert_eq!(credits.accounts[&remote(1)].received, 1200);
        }
    }

    #[test]
    fn who_was_told_the_server_s_name_has_proved_its_address() {
        let mut credits = Credits::new(8, LIFE);
        assert!(credits.open(clock::now(), remote(1), Some((id(b"client"), 10))));
        for server in [b"server", b"second"] {
            assert_eq!(send(&mut credits, remote(1), &long(b"client", server, 1000), 1000), 0);
        }
        credits.handle_datagram(remote(1), &long(b"guess", b"client", 30));
        credits.handle_datagram(remote(2), &long(b"server", b"client", 30));
        assert_eq!(credits.len(), 1);
        let (counted, waiting) = credits.handle_datagram(remote(1), &long(b"second", b"client", 30));
        assert!(counted && waiting.unwrap().contents.len() == 1000);
        assert!(credits.len() == 0 && credits.by_end.is_empty());
        assert_eq!(send(&mut credits, remote(1), &long(b"client", b"server", 9000), 1000), 9000);
    }

    #[test]
    fn what_the_client_chose_proves_nothing() {
        let mut credits = Credits::new(8, LIFE);
        assert!(credits.open(clock::now(), remote(1), Some((id(b"client"), 1200))));
        let mut negotiation = long(b"client", b"chosen", 40);
        negotiation[1..5].fill(0);
        assert_eq!(send(&mut credits, remote(1), &negotiation, 40), 40);
        credits.handle_datagram(remote(1), &long(b"chosen", b"client", 30));
        let account = &credits.accounts[&remote(1)];
        assert_eq!((account.received, account.sent), (1230, 40));
    }

    #[test]
    fn who_is_let_in_has_an_account_before_newcomers_have() {
        let mut credits = Credits::new(4, LIFE);
        let now = clock::now();
        for number in 0..4 {
            assert_eq!(credits.has_room(now, remote(number)), number < 2, "two of four are kept");
            assert!(credits.open(now, remote(number), Some((id(&[1]), 1))));
        }
        assert!(credits.has_room(now, remote(0)), "it has one");
        for number in 2..=64 {
            assert!(credits.open(now, remote(0), Some((id(&[number]), 1))));
        }
        assert!(!credits.has_room(now, remote(0)));
        assert!(credits.has_room(now + LIFE, remote(9)));
    }

    #[test]
    fn there_is_a_bound_and_an_end() {
        let mut credits = Credits::new(3, LIFE);
        let now = clock::now();
        for number in 0..3 {
            assert!(credits.open(now + number * LIFE / 4, remote(number as u16), Some((id(&[1]), 1))));
        }
        assert!(!credits.open(now, remote(3), Some((id(&[1]), 1))));
        // Who comes again is held for longer.
        assert!(credits.open(now + LIFE / 2, remote(0), Some((id(&[2]), 1))));
        assert!(!credits.open(now + LIFE, remote(3), Some((id(&[1]), 1))));
        assert!(credits.open(now + LIFE * 5 / 4, remote(3), Some((id(&[1]), 1))));
        assert!(credits.accounts.contains_key(&remote(0)) && !credits.accounts.contains_key(&remote(1)));
        for number in 2..64 {
            assert!(credits.open(now + LIFE, remote(0), Some((id(&[number]), 1))));
        }
        assert!(!credits.open(now + LIFE, remote(0), Some((id(&[64]), 1))));
        assert_eq!(credits.by_end.len(), 3);
    }

    proptest! {
        #[test]
        fn never_more_than_three_times_goes(
            steps: Vec<(bool, u8, u16, u8)>, client: [u8; 4], received in 1_u64..2000,
        ) {
            let mut credits = Credits::new(3, LIFE);
            assert!(credits.open(clock::now(), remote(1), Some((id(&client), received))));
            let (mut received, mut sent) = (received, 0);
            for (comes, name, length, segments) in steps {
                let length = usize::from(length % 1500) + 30;
                if comes {
                    let datagram = long(&[name; 9], &client, length);
                    let (_, waiting) = credits.handle_datagram(remote(1), &datagram);
                    received += length as u64;
                    sent += waiting.map_or(0, |waiting| waiting.contents.len() as u64);
                } else {
                    let contents = long(&client, b"of the server", length * usize::from(segments % 4 + 1));
                    sent += send(&mut credits, remote(1), &contents, length) as u64;
                }
                prop_assert!(sent <= 3 * received, "{sent} for {received}");
            }
        }

        #[test]
        fn nothing_that_comes_is_too_strange(bytes: Vec<u8>) {
            let mut credits = Credits::new(3, LIFE);
            credits.open(clock::now(), remote(1), Some((id(b""), 1)));
            credits.handle_datagram(remote(1), &bytes);
            send(&mut credits, remote(1), &bytes, 1);
        }
    }
}
