//! Answers that are bodies in one piece, and errors in the shape of the API that was called.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::dialect::Dialect;
use super::hosted::whole_seconds;
use super::model::OverCapacity;
use super::paced::SimulatedBody;
use super::server::Call;
use super::slots::Slots;

/// An error: what it is called in OpenAI's and in Anthropic's API, and what it says.
pub(crate) struct Trouble<'a> {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    message: &'a str,
    retry_after: Option<Duration>,
}

impl<'a> Trouble<'a> {
    /// The request is at fault.
    pub(crate) const fn invalid(status: StatusCode, code: &'static str, message: &'a str) -> Self {
        Self { status, kind: "invalid_request_error", code, message, retry_after: None }
    }
}

impl Trouble<'static> {
    /// What a fault of the simulation says.
    pub(crate) fn fault(status: u16, retry_after: Option<Duration>) -> Self {
        let (kind, code, message) = match status {
            401 => ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
            429 => ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
            503 | 529 => ("server_error", "overloaded", "The server is overloaded."),
            _ => ("server_error", "internal_error", "The server had an error while processing your request."),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, kind, code, message, retry_after }
    }

    /// There is no slot, or no budget.
    pub(crate) fn refusal(law: &OverCapacity) -> Self {
        match law {
            OverCapacity::Refuse429 { retry_after } => Self::fault(429, Some(*retry_after)),
            // Its budget's standing says when to come back.
            _ => Self::fault(429, None),
        }
    }

    /// The error that comes with a 200.
    pub(crate) fn in_a_body() -> Self {
        Self::fault(503, None)
    }
}

impl Trouble<'_> {
    fn body(&self, call: Option<Call>) -> Value {
        let message = self.message;
        if call == Some(Call::Tell(Dialect::Messages)) {
            let kind = match self.status.as_u16() {
                401 => "authentication_error",
                404 => "not_found_error",
                429 => "rate_limit_error",
                503 | 529 => "overloaded_error",
                500..=599 => "api_error",
                _ => "invalid_request_error",
            };
            return json!({ "type": "error", "error": { "type": kind, "message": message } });
        }
        json!({ "error": { "message": message, "type": self.kind, "param": null, "code": self.code } })
    }

    pub(crate) fn response(&self, slots: &Slots, call: Option<Call>) -> Response<SimulatedBody> {
        let mut response = json(slots, self.status, &self.body(call));
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        response
    }

    /// The error as the body of a 200: of a stream its only event.
    pub(crate) fn success(&self, slots: &Slots, call: Call, stream: bool) -> Response<SimulatedBody> {
        let body = self.body(Some(call));
        if !stream {
            return json(slots, StatusCode::OK, &body);
        }
        let event = Bytes::from(format!("data: {body}\n\n"));
        slots.sent(event.len());
        respond(StatusCode::OK, "text/event-stream; charset=utf-8", SimulatedBody::whole(event))
    }
}

pub(crate) fn json(slots: &Slots, status: StatusCode, value: &Value) -> Response<SimulatedBody> {
    bytes(slots, status, Bytes::from(value.to_string()))
}

pub(crate) fn bytes(slots: &Slots, status: StatusCode, bytes: Bytes) -> Response<SimulatedBody> {
    slots.sent(bytes.len());
    respond(status, "application/json", SimulatedBody::whole(bytes))
}

pub(crate) fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: SimulatedBody,
) -> Response<SimulatedBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
