//! Answers that the proxy gives by itself.

use tokio::time::Instant;
use weft_core::decide::Decision;
use weft_core::respond::{Cause, LocalReply};

use crate::alarm::Elapsed;
use crate::codec::{Framing, Name};
use crate::filter;
use crate::respond;
use crate::serve::Scratch;

use super::{Exchange, Next, earliest};

impl Exchange<'_> {
    /// Answer with an error of our own, where no route is known.
    pub(super) async fn respond(&mut self, reply: LocalReply) -> Next {
        self.answer_locally(&reply, reply.body.as_bytes(), None, None).await
    }

    /// Answer with an error of our own, to which the edits of the route apply as they do to any other answer.
    pub(super) async fn respond_by(&mut self, decision: &Decision<'_>, reply: LocalReply) -> Next {
        self.answer_locally(&reply, reply.body.as_bytes(), None, Some(decision)).await
    }

    /// Answer with *body*: an error of our own, or what the configuration says. The edits of the route apply to it.
    pub(super) async fn answer_locally(
        &mut self,
        reply: &LocalReply,
        body: &[u8],
        location: Option<&[u8]>,
        decision: Option<&Decision<'_>>,
    ) -> Next {
        let refusal;
        let (reply, body) = if self.would_agree(reply.status) {
            refusal = LocalReply::from(Cause::UpgradeRefused);
            (&refusal, &[][..])
        } else {
            (reply, body)
        };
        self.fail_with(reply);
        // In gRPC every answer is a success of HTTP.
        let is_grpc = respond::is_grpc(&self.scratch.request) && !self.would_agree(200);
        respond::begin(&mut self.scratch.response, reply);
        if let Some(location) = location {
            self.scratch.response.append(Name::new("location"), location);
        }
        if let Some(decision) = decision {
            self.edit_response(decision);
            self.tell_failure(reply.cause, decision);
        }
        if is_grpc {
            respond::complete_grpc(&mut self.scratch.response, reply, body);
            self.outcome.status = self.scratch.response.status;
            return self.send_local(&[]).await;
        }
        respond::complete(&mut self.scratch.response, body);
        self.send_local(body).await
    }

    /// What Envoy's router adds when it answers itself: who overloads whom, and how often it tried.
    fn tell_failure(&mut self, cause: Cause, decision: &Decision<'_>) {
        let response = &mut self.scratch.response;
        if cause == Cause::Overflow && !self.down.context.suppress_envoy_headers {
            response.append(Name::new("x-envoy-overloaded"), b"true");
        }
        let tells = decision.virtual_host.is_some_and(|host| host.response_attempt_count);
        if tells && cause.is_of_a_try() {
            // One that found nowhere to go counts.
            filter::tell_attempts(response, self.outcome.attempts.max(1));
        }
    }

    pub(super) async fn send_local(&mut self, body: &[u8]) -> Next {
        if let Some(web) = &mut self.web {
            web.answer(&mut self.scratch.response);
        }
        if let Some(granted) = &self.granted {
            granted.tell(&mut self.scratch.response);
        }
        let now = Instant::now();
        filter::finish(&mut self.scratch.response, self.manager, &self.down.worker.clock, now);
        // What of the request's body is here already can be passed over; for more the client is not made to wait.
        match self.client.skip_body() {
            Ok(bytes) => self.received.body_bytes.set(self.received.body_bytes.get() + bytes),
            Err(_) => self.last = true,
        }
        self.last = self.is_last() || !self.client.is_done();
        // One that says that the request has lived too long goes out all the same.
        let expires = self.expires.filter(|end| *end > now);
        let deadline = earliest(self.idle.map(|limit| now + limit), expires);
        let Exchange { client, alarm, scratch, last, client_version, .. } = &mut *self;
        let Scratch { request, response, to_downstream, .. } = &mut **scratch;
        // RFC 9110 9.3.2, 15.3.5, 15.4.5: the head alone.
        let is_bodiless = matches!(response.status, 100..200 | 204 | 304);
        response.framing = if is_bodiless { Framing::None } else { Framing::Length(body.len() as u64) };
        let body = if is_bodiless || request.is_head_request() { &[] } else { body };
        let (_, mut writer) = client.split(to_downstream);
        *last = writer.response(response, *client_version, *last);
        match alarm.limit(deadline, writer.whole(body)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Next::Over,
            // A client that does not read it for so long does not get it.
            Err(Elapsed) => return Next::Reset,
        }
        self.sent.body_bytes.set(body.len() as u64);
        if self.last { Next::Close } else { Next::KeepAlive }
    }
}
