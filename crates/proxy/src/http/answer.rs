//! Handing the upstream's answer on: its head, its body, or the tunnel that it opens.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::cluster::Cluster;
use weft_core::decide::Decision;
use weft_core::respond::{Cause, ResponseFlag};

use crate::codec::{Framing, Name};
use crate::filter::{self};
use crate::forward::{self, Course, Flow, FlowError, Totals, TunnelEnd};
use crate::message::ReadError;
use crate::multiplex::StreamEnd;
use crate::record::{self, Entry, Subject};
use crate::serve::Scratch;
use crate::tcp;

use super::client::Client;
use super::server::Server;
use super::{Exchange, Next, earliest};

impl Exchange<'_> {
    /// Hand the response on, whose head has been read.
    pub(super) async fn answer(
        &mut self,
        mut server: Server,
        decision: &Decision<'_>,
        timeout: Option<Duration>,
    ) -> Next {
        let taken = self.answered - self.began;
        let service_time = taken.saturating_sub(self.outcome.request_duration.unwrap_or_default());
        let suppress = self.down.context.suppress_envoy_headers;
        self.outcome.status = self.scratch.response.status;
        self.outcome.details = "via_upstream".into();
        let upgraded = match self.scratch.response.status {
            101 => !self.scratch.request.upgrade().is_empty(),
            200..300 => self.scratch.request.is_connect(),
            _ => false,
        };
        let upstream_closes = self.scratch.response.close;
        filter::receive(&mut self.scratch.response, (!suppress).then_some(service_time));
        if let Some(web) = &mut self.web {
            web.answer(&mut self.scratch.response);
        }
        for cookie in self.set_cookies.drain(..) {
            self.scratch.response.append(Name::new("set-cookie"), cookie.as_bytes());
        }
        self.edit_response(decision);
        if let Some(granted) = &self.granted {
            granted.tell(&mut self.scratch.response);
        }
        self.finish_head(decision);
        if upgraded {
            return Box::pin(self.tunnel(server, TunnelEnd::Upstream)).await;
        }
        let ends_at_close = self.scratch.response.framing == Framing::UntilClose;
        let close = self.is_last() || !self.request_done;
        let Scratch { response, to_downstream, .. } = &mut *self.scratch;
        let (_, mut writer) = self.client.split(to_downstream);
        self.last = writer.response(response, self.client_version, close);
        match self.stream(&mut server, timeout).await {
            Streamed::Complete => {
                let is_reusable = self.request_done && !upstream_closes && !ends_at_close;
                server.complete(&self.upstream_cluster(), is_reusable);
                if self.last { Next::Close } else { Next::KeepAlive }
            }
            Streamed::DownstreamGone => {
                server.cancel();
                // It may have ended its own direction only, and must not take what it has for a whole answer.
                self.cut_short(self.client.departure())
            }
            Streamed::UpstreamGone => self.cut_short(match server.stream_end() {
                Some(StreamEnd::Reset | StreamEnd::Refused) => Cause::ResetAfterResponse,
                _ => Cause::TerminationAfterResponse,
            }),
            Streamed::Malformed => self.cut_short(Cause::ProtocolErrorAfterResponse),
            Streamed::TimedOut => {
                server.cancel();
                self.cut_short(Cause::TimeoutAfterResponse)
            }
            Streamed::Idle => {
                server.cancel();
                self.cut_short(Cause::StreamIdleTimeout)
            }
            Streamed::Expired => {
                server.cancel();
                self.cut_short(Cause::MaxStreamDuration)
            }
        }
    }

    fn upstream_cluster(&self) -> Arc<Cluster> {
        // `answer` is only reached with an upstream chosen.
        Arc::clone(&self.upstream.as_ref().expect("a request that was answered has an upstream").shared.cluster)
    }

    /// Move the response's body down while the rest of the request, if any, still goes up.
    async fn stream(&mut self, server: &mut Server, timeout: Option<Duration>) -> Streamed {
        let (idle, expires, answered) = (self.idle, self.expires, self.answered);
        let Exchange {
            down,
            client,
            alarm,
            scratch,
            began,
            outcome,
            received,
            sent,
            course,
            request_done,
            web,
            copies,
            ..
        } = self;
        let Scratch { to_upstream, to_downstream, replay, .. } = &mut **scratch;
        let (from_server, to_server) = server.split(to_upstream);
        let (from_client, to_client) = client.split(to_downstream);
        let mut sending = !*request_done;
        let (received, sent) = (&*received, &*sent);
        let (from_web, to_web) = match web.as_deref_mut() {
            Some(web) => (web.request.as_mut(), web.response.as_mut()),
            None => (None, None),
        };
        let mut send = Flow {
            reader: from_client,
            writer: to_server,
            course,
            progress: received,
            transcoder: from_web,
            replay: Some(replay),
            copies: copies.as_deref(),
        };
        let mut answer = Flow {
            reader: from_server,
            writer: to_client,
            course: &mut Course::default(),
            progress: sent,
            transcoder: to_web,
            replay: None,
            copies: None,
        };
        poll_fn(|context| {
            if sending {
                match send.poll(context) {
                    Poll::Ready(Ok(())) => {
                        sending = false;
                        *request_done = true;
                        outcome.request_duration.get_or_insert_with(|| began.elapsed());
                    }
                    // The response goes on; the connection just cannot carry another request.
                    Poll::Ready(Err(FlowError::Sink(_) | FlowError::Source(ReadError::Malformed(_)))) => {
                        sending = false
                    }
                    Poll::Ready(Err(FlowError::Source(ReadError::Broken(_) | ReadError::Closed))) => {
                        return Poll::Ready(Streamed::DownstreamGone);
                    }
                    Poll::Pending => {}
                }
            }
            // Also while what is being sent waits for an upstream that does not read.
            if send.reader.poll_gone(context).is_ready() {
                return Poll::Ready(Streamed::DownstreamGone);
            }
            match answer.poll(context) {
                Poll::Ready(Ok(())) => {
                    let logs = &down.context.logs;
                    outcome.trailers = answer.reader.with_trailers(|trailers| record::wanted(logs, trailers));
                    return Poll::Ready(Streamed::Complete);
                }
                Poll::Ready(Err(FlowError::Sink(_))) => return Poll::Ready(Streamed::DownstreamGone),
                Poll::Ready(Err(FlowError::Source(ReadError::Malformed(_)))) => {
                    return Poll::Ready(Streamed::Malformed);
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Streamed::UpstreamGone),
                Poll::Pending => {}
            }
            let moved = received.moved.get().max(sent.moved.get()).unwrap_or(answered);
            let quiet = idle.map(|idle| moved + idle);
            // The request may end behind the head of its answer, and only then does its time begin (Envoy).
            let deadline = timeout.zip(outcome.request_duration).map(|(timeout, end)| *began + end + timeout);
            alarm.poll(context, earliest(earliest(deadline, quiet), expires)).map(|_| {
                let now = Instant::now();
                if expires.is_some_and(|end| now >= end) {
                    Streamed::Expired
                } else if deadline.is_some_and(|deadline| now >= deadline) {
                    Streamed::TimedOut
                } else {
                    Streamed::Idle
                }
            })
        })
        .await
    }

    /// 101, or 2xx to CONNECT: from here on bytes go both ways. *close*: what it is that the upstream closes its connection in order.
    pub(super) async fn tunnel(&mut self, mut server: Server, close: TunnelEnd) -> Next {
        let limits = tcp::Limits { idle: self.idle, end: self.expires };
        let Exchange { client, alarm, scratch, outcome, received, sent, .. } = self;
        let Scratch { response, to_upstream, to_downstream, .. } = &mut **scratch;
        let (_, mut writer) = client.split(to_downstream);
        writer.upgraded(response);
        if writer.flush().await.is_err() {
            server.cancel();
            return self.gone();
        }
        let totals = Totals::of(received, sent);
        let end = match (client.tunnel(), server.tunnel()) {
            (Some(client), Some(server)) => {
                tcp::within(limits, forward::tunnel(client, server, &totals, false), &totals, alarm).await
            }
            _ => {
                client.become_tunnel();
                server.become_tunnel();
                let work = tunnel_messages(client, &mut server, to_upstream, to_downstream, &totals);
                tcp::within(limits, work, &totals, alarm).await
            }
        };
        // It has no other end than that somebody ends it: the record tells who was the first, in order or not (Envoy).
        let in_order = totals.first_end.get().map(|first| if first == TunnelEnd::Upstream { close } else { first });
        let cause = match in_order.or(end) {
            Some(TunnelEnd::Downstream | TunnelEnd::Request) if client.is_reset() => Some(Cause::DownstreamReset),
            Some(TunnelEnd::Downstream | TunnelEnd::Request) => Some(client.departure()),
            Some(TunnelEnd::Upstream) => Some(match server.stream_end() {
                Some(StreamEnd::Reset | StreamEnd::Refused) => Cause::ResetAfterResponse,
                _ => Cause::TerminationAfterResponse,
            }),
            Some(TunnelEnd::Finished) | None => None,
        };
        match end {
            Some(TunnelEnd::Finished) => {}
            Some(TunnelEnd::Downstream | TunnelEnd::Request) => server.cancel(),
            Some(TunnelEnd::Upstream) => client.reset_on_close(),
            None if limits.is_over() => outcome.details = Cause::MaxStreamDuration.row().details.into(),
            None => outcome.flag(ResponseFlag::StreamIdleTimeout),
        }
        if let Some(cause) = cause {
            self.outcome.fail(cause);
        }
        Next::Over
    }

    pub(super) fn edit_response(&mut self, decision: &Decision<'_>) {
        if decision.response_edits().next().is_none() {
            return;
        }
        let before = self.scratch.response.clone();
        let Exchange { down, scratch, outcome, began, .. } = self;
        let Scratch { request, response, .. } = &mut **scratch;
        let entry = Entry {
            subject: Subject::Request,
            clock: &down.worker.clock,
            start: down.worker.clock.wall(*began),
            facts: &down.facts,
            outcome,
            request: Some(request),
            version: None,
            response: Some(&before),
            chain_name: &down.context.chain.name,
        };
        filter::edit_response(response, decision, &entry);
    }

    fn finish_head(&mut self, decision: &Decision<'_>) {
        if decision.virtual_host.is_some_and(|host| host.response_attempt_count) {
            filter::tell_attempts(&mut self.scratch.response, self.outcome.attempts);
        }
        filter::finish(&mut self.scratch.response, self.manager, &self.down.worker.clock, self.answered);
    }
}

/// A tunnel of which at least one end is a stream of HTTP/2: each direction is a body that ends when its sender says so.
async fn tunnel_messages(
    client: &mut Client<'_>,
    server: &mut Server,
    to_upstream: &mut Vec<u8>,
    to_downstream: &mut Vec<u8>,
    totals: &Totals<'_>,
) -> TunnelEnd {
    to_upstream.clear();
    to_downstream.clear();
    let (mut up_done, mut down_done) = (false, false);
    let (mut up_course, mut down_course) = (Course::default(), Course::default());
    loop {
        let step = {
            let (from_server, to_server) = server.split(to_upstream);
            let (from_client, to_client) = client.split(to_downstream);
            let mut up = Flow {
                reader: from_client,
                writer: to_server,
                course: &mut up_course,
                progress: totals.received,
                transcoder: None,
                replay: None,
                copies: None,
            };
            let mut down = Flow {
                reader: from_server,
                writer: to_client,
                course: &mut down_course,
                progress: totals.sent,
                transcoder: None,
                replay: None,
                copies: None,
            };
            poll_fn(|context| {
                if !up_done && let Poll::Ready(result) = up.poll(context) {
                    return Poll::Ready((true, result));
                }
                if !down_done && let Poll::Ready(result) = down.poll(context) {
                    return Poll::Ready((false, result));
                }
                Poll::Pending
            })
            .await
        };
        match step {
            (true, Ok(())) => {
                up_done = true;
                totals.end(TunnelEnd::Downstream);
                server.finish().await;
            }
            (false, Ok(())) => {
                down_done = true;
                // A stream that ends in order is the end of an answer as any other.
                let is_stream = server.tunnel().is_none();
                totals.end(if is_stream { TunnelEnd::Finished } else { TunnelEnd::Upstream });
                client.finish().await;
            }
            (true, Err(FlowError::Source(_))) | (false, Err(FlowError::Sink(_))) => return TunnelEnd::Downstream,
            (_, Err(_)) => return TunnelEnd::Upstream,
        }
        if up_done && down_done {
            return TunnelEnd::Finished;
        }
    }
}

enum Streamed {
    Complete,
    DownstreamGone,
    UpstreamGone,
    Malformed,
    TimedOut,
    Idle,
    Expired,
}
