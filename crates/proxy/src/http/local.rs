//! Answers that the proxy gives by itself.

use tokio::time::Instant;
use weft_core::decide::Decision;
use weft_core::respond::LocalReply;

use crate::codec::{Framing, Name};
use crate::filter;
use crate::respond;
use crate::serve::Scratch;

use super::{Exchange, Next};

impl Exchange<'_> {
    /// Answer with an error of our own.
    pub(super) async fn respond(&mut self, reply: LocalReply) -> Next {
        self.fail_with(&reply);
        if respond::is_grpc(&self.scratch.request) {
            respond::fill_grpc(&mut self.scratch.response, &reply);
            self.outcome.status = self.scratch.response.status;
            return self.send_local(&[]).await;
        }
        respond::fill(&mut self.scratch.response, &reply);
        let body = reply.body.into_owned();
        self.send_local(body.as_bytes()).await
    }

    /// Answer with what the configuration says: a redirect or a direct response. The route's edits apply to it.
    pub(super) async fn answer_from_configuration(
        &mut self,
        reply: &LocalReply,
        body: &[u8],
        location: Option<&[u8]>,
        decision: Option<&Decision<'_>>,
    ) -> Next {
        self.fail_with(reply);
        respond::fill(&mut self.scratch.response, reply);
        if !body.is_empty() {
            self.scratch.response.set(Name::new("content-type"), b"text/plain");
        }
        if let Some(location) = location {
            self.scratch.response.append(Name::new("location"), location);
        }
        if let Some(decision) = decision {
            self.edit_response(decision);
        }
        self.send_local(body).await
    }

    pub(super) async fn send_local(&mut self, body: &[u8]) -> Next {
        if let Some(web) = &mut self.web {
            web.answer(&mut self.scratch.response);
        }
        if let Some(granted) = &self.granted {
            granted.tell(&mut self.scratch.response);
        }
        filter::finish(&mut self.scratch.response, self.manager, &self.down.worker.clock, Instant::now());
        // What of the request's body is here already can be passed over; for more the client is not made to wait.
        match self.client.skip_body() {
            Ok(bytes) => self.received.body_bytes.set(self.received.body_bytes.get() + bytes),
            Err(_) => self.last = true,
        }
        self.last |= !self.client.is_done() || self.down.worker.is_draining();
        let Scratch { request, response, to_downstream, .. } = &mut *self.scratch;
        // RFC 9110 9.3.2, 15.3.5, 15.4.5: the head alone.
        let is_bodiless = matches!(response.status, 100..200 | 204 | 304);
        response.framing = if is_bodiless { Framing::None } else { Framing::Length(body.len() as u64) };
        let body = if is_bodiless || request.is_head_request() { &[] } else { body };
        let (_, mut writer) = self.client.split(to_downstream);
        self.last = writer.response(response, self.client_version, self.last);
        if writer.whole(body).await.is_err() {
            return Next::Over;
        }
        self.sent.body_bytes.set(body.len() as u64);
        if self.last { Next::Close } else { Next::KeepAlive }
    }
}
