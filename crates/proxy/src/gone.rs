//! Work on behalf of a client, which may be gone before it is done.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

/// Run *work* until it is ready, or until *gone* is: then nobody waits for it any more, it is cancelled, and there is `None`.
///
/// What is ready at the same moment counts. *gone* is asked with the task's context each time that *work* is not ready.
pub async fn unless_gone<F: Future>(work: F, mut gone: impl FnMut(&mut Context<'_>) -> Poll<()>) -> Option<F::Output> {
    let mut work = pin!(work);
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => gone(context).map(|()| None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    #[tokio::test]
    async fn what_is_ready_counts_though_nobody_waits() {
        assert_eq!(unless_gone(ready(1), |_| Poll::Ready(())).await, Some(1));
        assert_eq!(unless_gone(pending::<u8>(), |_| Poll::Ready(())).await, None);
        let later = async {
            tokio::task::yield_now().await;
            2
        };
        assert_eq!(unless_gone(later, |_| Poll::Pending).await, Some(2));
    }
}
