//! How long resources that others name are waited for (`initial_fetch_timeout`): a task for each that has not come, from the subscription on.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Weak;
use std::time::Duration;

use tokio::task::{AbortHandle, spawn_local};

use crate::configure::Configurator;
use crate::warming::Key;

/// A resource that is waited for, as long as this lives.
struct Wait {
    limit: Duration,
    task: AbortHandle,
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All that is waited for and not without end.
#[derive(Default)]
pub struct Patience(BTreeMap<Key, Wait>);

impl Patience {
    /// Wait for what is *missing*, each so long, and for nothing else.
    pub fn follow(&mut self, missing: &BTreeMap<Key, Duration>, configurator: &Weak<RefCell<Configurator>>) {
        self.0.retain(|key, wait| missing.get(key) == Some(&wait.limit));
        for (key, &limit) in missing {
            let task = || spawn_local(give_up(Weak::clone(configurator), key.clone(), limit)).abort_handle();
            self.0.entry(key.clone()).or_insert_with(|| Wait { limit, task: task() });
        }
    }
}

async fn give_up(configurator: Weak<RefCell<Configurator>>, key: Key, limit: Duration) {
    tokio::time::sleep(limit).await;
    if let Some(configurator) = configurator.upgrade() {
        configurator.borrow_mut().do_without(&key, limit);
    }
}
