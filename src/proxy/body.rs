//! A response's body on its way to the client: the upstream's, metered, or one of our own.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::proxy::meter::Metered;
use crate::upstream::BoxError;

/// What the pipeline answers with.
pub struct Body(Kind);

#[allow(clippy::large_enum_variant, reason = "nearly every body is a metered one")]
enum Kind {
    Metered(Metered),
    Own(Option<Bytes>),
}

impl Body {
    pub(super) fn metered(body: Metered) -> Self {
        Self(Kind::Metered(body))
    }

    pub(super) fn own(bytes: Bytes) -> Self {
        Self(Kind::Own(Some(bytes).filter(|b| !b.is_empty())))
    }
}

impl Drop for Body {
    /// The client left in the middle, unless it is over: some upstreams' answers are still read to their end.
    fn drop(&mut self) {
        let Kind::Metered(metered) = &mut self.0 else { return };
        let Some((tunnels, limit)) = metered.left() else { return };
        if let Kind::Metered(metered) = std::mem::replace(&mut self.0, Kind::Own(None)) {
            tunnels.read_out(metered, limit);
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().0 {
            Kind::Metered(body) => Pin::new(body).poll_frame(cx),
            Kind::Own(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Metered(body) => body.is_end_stream(),
            Kind::Own(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Metered(body) => body.size_hint(),
            Kind::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
        }
    }
}
