//! One timer for a connection, armed lazily.
//!
//! A request sets deadlines that almost never come due. Arming a timer for each costs more than reading the request; so the timer
//! stays armed for the earliest deadline it ever had to keep, and when it rings too early it is set again. Under load it rings once
//! per timeout and connection, not once per request.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

/// The deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// A reusable timer.
#[derive(Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Ready when *deadline* has passed; never, if there is none. The deadline may change between calls.
    pub fn poll(&mut self, context: &mut Context<'_>, deadline: Option<Instant>) -> Poll<Elapsed> {
        let Some(deadline) = deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if deadline < sleep.deadline() {
            sleep.as_mut().reset(deadline);
        }
        loop {
            match sleep.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if Instant::now() >= deadline => return Poll::Ready(Elapsed),
                Poll::Ready(()) => sleep.as_mut().reset(deadline),
            }
        }
    }

    /// Run *work* until it is ready or *deadline* passes. Cancels *work* then.
    ///
    /// # Errors
    /// [`Elapsed`].
    pub fn limit<F: Future>(&mut self, deadline: Option<Instant>, work: F) -> Limit<'_, F> {
        Limit { alarm: self, deadline, work }
    }
}

pin_project! {
    /// See [`Alarm::limit`].
    // No `async fn`: its state would have room for its argument twice, and what waits for what is kilobytes.
    pub struct Limit<'a, F> {
        alarm: &'a mut Alarm,
        deadline: Option<Instant>,
        #[pin]
        work: F,
    }
}

impl<F: Future> Future for Limit<'_, F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.work.poll(context) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => this.alarm.poll(context, *this.deadline).map(Err),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn an_early_ring_is_set_again_for_the_present_deadline() {
        let mut alarm = Alarm::default();
        let begin = Instant::now();
        let soon = alarm.limit(Some(begin + Duration::from_millis(10)), std::future::ready(1)).await;
        assert_eq!(soon, Ok(1));
        let late = alarm.limit(Some(begin + Duration::from_secs(5)), std::future::pending::<()>()).await;
        assert_eq!(late, Err(Elapsed));
        assert_eq!(begin.elapsed(), Duration::from_secs(5));
        let earlier = alarm.limit(Some(Instant::now() + Duration::from_millis(3)), std::future::pending::<()>()).await;
        assert_eq!(earlier, Err(Elapsed));
        assert_eq!(begin.elapsed(), Duration::from_millis(5003));
    }
}
