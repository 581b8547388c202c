//! Somebody who watches a channel to which nobody may come, and from which nobody may go.

use anyhow::{Context as _, Result, ensure};
use tidegate_interop_tests::gateway::Gateway;
use tidegate_interop_tests::raw::Carrier;
use tidegate_interop_tests::wait::{PATIENCE, within};
use tokio::task::JoinSet;

use super::real::presence::Person;

pub(super) struct Watch {
    watching: JoinSet<Result<Person>>,
}

impl Watch {
    /// Begins when so many others have come.
    pub(super) async fn begin(mut watcher: Person, others: usize) -> Result<Self> {
        while watcher.told.len() < others {
            watcher.hear().await?;
        }
        watcher.told.clear();
        let mut watching = JoinSet::new();
        watching.spawn(async move {
            while watcher.told.is_empty() {
                watcher.hear().await?;
            }
            Ok(watcher)
        });
        Ok(Self { watching })
    }

    /// Nobody came, nobody went: the next who is heard of is somebody who comes now.
    pub(super) async fn end(mut self, gateway: &Gateway, channel: &str) -> Result<()> {
        let late = Person::join(gateway, Carrier::WebSocket, Some("late"), channel, false).await?;
        let next = within(PATIENCE, "the next who comes", self.watching.join_next()).await?;
        let watcher = next.context("nobody watches")???;
        ensure!(watcher.told == ["+late"] && watcher.gaps == 0, "{:?}, {} gaps", watcher.told, watcher.gaps);
        late.leave().await
    }
}
