//! A request whose virtual host is not here yet, where virtual hosts are loaded on demand: it waits until the control plane has spoken.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::route::RouteTable;

use super::Exchange;
use crate::on_demand::Answer;

/// How long a request waits: Envoy's default for clusters that are discovered on demand.
const LOAD_TIME: Duration = Duration::from_secs(5);

impl Exchange<'_> {
    /// Ask for the virtual host of the request. `None`: the client went away meanwhile.
    pub(super) async fn load(&mut self, table: &Arc<RouteTable>) -> Option<Answer> {
        let Some(entry) = table.host_entry(self.scratch.request.authority()) else { return Some(Answer::Unknown) };
        let answer = self.down.worker.asking.ask(Arc::clone(&table.name), entry.into_owned());
        let heard = self.unless_gone(Some(Instant::now() + LOAD_TIME), answer).await?;
        // The main thread drops no ask that it could answer.
        Some(heard.ok().and_then(Result::ok).unwrap_or(Answer::Unavailable))
    }
}
