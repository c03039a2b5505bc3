//! Work on behalf of a client, which may be gone before it is done.

use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

/// Run *work* until it is ready, or until *gone* is: then nobody waits for it any more, it is cancelled, and there is `None`.
///
/// What is ready at the same moment counts. *gone* is asked with the task's context each time that *work* is not ready.
pub fn unless_gone<F: Future, G: FnMut(&mut Context<'_>) -> Poll<()>>(work: F, gone: G) -> UnlessGone<F, G> {
    UnlessGone { work, gone }
}

pin_project! {
    /// See [`unless_gone`].
    // No `async fn`, for the reason of [`crate::alarm::Limit`].
    pub struct UnlessGone<F, G> {
        #[pin]
        work: F,
        gone: G,
    }
}

impl<F: Future, G: FnMut(&mut Context<'_>) -> Poll<()>> Future for UnlessGone<F, G> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.work.poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => (this.gone)(context).map(|()| None),
        }
    }
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
