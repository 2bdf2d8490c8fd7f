//! Which API a path belongs to, and whether asking it takes a permit.

use std::borrow::Cow;

use hyper::Method;

use crate::telemetry::Endpoint;

/// What the path alone says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) endpoint: Endpoint,
    pub(super) permit: TakesPermit,
}

/// Whether a request takes a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TakesPermit {
    /// It is inference.
    Yes,
    /// It is if its JSON names a model.
    IfItNamesAModel,
    /// It is not.
    No,
}

/// Reads the end of the path, so that any prefix works: `/v1/…`, `/openai/deployments/x/…`, `/api/v3/…`.
pub(super) fn route(method: &Method, path: &str) -> Route {
    use Endpoint::{
        Audio, Batches, Chat, Completions, Embeddings, Files, Images, Messages, Models, Moderations, Other,
        Realtime, Rerank, Responses,
    };
    let plain = plain(path);
    let path = &*plain;
    let mut back = path.trim_end_matches('/').rsplit('/');
    let last = back.next().unwrap_or_default();
    let before = back.next().unwrap_or_default();
    let before_that = back.next().unwrap_or_default();
    let (endpoint, inference) = match (before, last) {
        ("chat", "completions") => (Chat, true),
        (_, "completions") => (Completions, true),
        (_, "responses") => (Responses, true),
        (_, "embeddings") => (Embeddings, true),
        // the messages of an assistant's thread are data, not inference
        (_, "messages") if before_that != "threads" => (Messages, true),
        ("audio", "speech" | "transcriptions" | "translations") => (Audio, true),
        ("images", "generations" | "edits" | "variations") => (Images, true),
        (_, "moderations") => (Moderations, true),
        (_, "rerank") => (Rerank, true),
        (_, "realtime") => (Realtime, false),
        _ => {
            let named = |name: &str| path.split('/').any(|part| part == name);
            let endpoint = if named("files") {
                Files
            } else if named("batches") {
                Batches
            } else if named("models") {
                Models
            } else if named("realtime") {
                Realtime
            } else if named("responses") {
                Responses
            } else if named("messages") && !named("threads") {
                Messages
            } else {
                Other
            };
            (endpoint, false)
        }
    };
    let permit = match (*method == Method::POST, inference, endpoint) {
        (false, ..) => TakesPermit::No,
        (true, true, _) => TakesPermit::Yes,
        (true, false, Files) => TakesPermit::No,
        (true, false, _) => TakesPermit::IfItNamesAModel,
    };
    Route { endpoint, permit }
}

/// The path as a server would read it: decoded, without dots and empty segments, in lower case. Only for
/// routing: a spelling that the upstream understands must not be a way around the gate.
fn plain(path: &str) -> Cow<'_, str> {
    let odd = |b: u8| b == b'%' || b.is_ascii_uppercase();
    if !path.bytes().any(odd) && !path.contains("//") && !path.contains("/.") {
        return Cow::Borrowed(path);
    }
    let decoded = decoded(path).to_lowercase();
    let mut parts = Vec::new();
    for part in decoded.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Cow::Owned(format!("/{}", parts.join("/")))
}

/// Without percent-encoding (RFC 3986 §2.1); what is no UTF-8 then, or no encoding, shows as what it is.
pub(super) fn decoded(text: &str) -> String {
    let raw = text.as_bytes();
    let mut decoded = Vec::with_capacity(raw.len());
    let mut at = 0;
    while let Some(byte) = raw.get(at) {
        let digits = raw.get(at + 1..at + 3).and_then(|two| std::str::from_utf8(two).ok());
        match digits.filter(|_| *byte == b'%').and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(code) => {
                decoded.push(code);
                at += 3;
            }
            None => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(path: &str) -> (Endpoint, TakesPermit) {
        let r = route(&Method::POST, path);
        (r.endpoint, r.permit)
    }

    #[test]
    fn inference_takes_a_permit_under_any_prefix() {
        for (path, endpoint) in [
            ("/v1/chat/completions", Endpoint::Chat),
            ("/openai/deployments/gpt-4o/chat/completions", Endpoint::Chat),
            ("/chat/completions/", Endpoint::Chat),
            ("/v1/completions", Endpoint::Completions),
            ("/v1/responses", Endpoint::Responses),
            ("/v1/embeddings", Endpoint::Embeddings),
            ("/v1/messages", Endpoint::Messages),
            ("/v1/audio/transcriptions", Endpoint::Audio),
            ("/v1/images/generations", Endpoint::Images),
            ("/v1/moderations", Endpoint::Moderations),
            ("/v2/rerank", Endpoint::Rerank),
        ] {
            assert_eq!(post(path), (endpoint, TakesPermit::Yes), "{path}");
            assert_eq!(route(&Method::GET, path).permit, TakesPermit::No, "GET {path}");
        }
    }

    #[test]
    fn no_spelling_is_a_way_around() {
        for path in [
            "/v1/Chat/Completions",
            "/v1/chat/complet%69ons",
            "/v1/chat/completions/.",
            "/v1//chat/./completions//",
            "/v1/x/../chat/completions",
            "/v1/chat%2Fcompletions",
        ] {
            assert_eq!(post(path), (Endpoint::Chat, TakesPermit::Yes), "{path}");
        }
        assert_eq!(post("/%").0, Endpoint::Other);
        assert_eq!(post("/%zz/../..").0, Endpoint::Other);
    }

    #[test]
    fn everything_else_does_not_unless_it_names_a_model() {
        use TakesPermit::{IfItNamesAModel, No};
        assert_eq!(post("/v1/files"), (Endpoint::Files, No));
        assert_eq!(post("/v1/batches"), (Endpoint::Batches, IfItNamesAModel));
        assert_eq!(post("/v1/responses/resp_1/cancel"), (Endpoint::Responses, IfItNamesAModel));
        assert_eq!(post("/v1/threads/t/messages").1, IfItNamesAModel);
        assert_eq!(post("/v1/fine_tuning/jobs"), (Endpoint::Other, IfItNamesAModel));
        assert_eq!(route(&Method::GET, "/v1/models"), Route { endpoint: Endpoint::Models, permit: No });
        assert_eq!(post("/"), (Endpoint::Other, IfItNamesAModel));
    }
}
