//! Bodies of answers that policies change, on their way through Pingora's proxy.
//!
//! Pingora's own hook for bodies does not see every end of one: not trailers, not a header that is all. Its modules do.
//! So an answer whose body is to change, and no other, gets a module.

use std::any::Any;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, header};
use pingora::http::ResponseHeader;
use pingora::modules::http::{HttpModule, HttpModuleBuilder, HttpModules, Module};
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;

use crate::exchange::Transforms;
use crate::exchange::transform::Then;

/// Changes the body of an answer.
struct Changing {
    transforms: Transforms,
    /// Pieces that are there already and come after one another.
    ready: usize,
    ended: bool,
    /// Bytes of the body: that are there, that were changed, and what these became.
    announced: u64,
    taken: u64,
    given: u64,
}

/// Sends the body of the answer that is about to begin through `transforms`.
pub(super) fn change(session: &mut Session, transforms: Transforms) {
    let mut modules = HttpModules::new();
    modules.add_module(Box::new(Builder));
    session.downstream_modules_ctx = modules.build_ctx();
    if let Some(changing) = session.downstream_modules_ctx.get_mut::<Changing>() {
        changing.transforms = transforms;
    }
}

/// Pingora takes what is there of a body at once, and only then passes it through its modules piece by piece: what has
/// been announced here is not waited for. Returns how many bytes will have gone out with this piece, going by what became of
/// those before.
pub(super) fn announce(session: &mut Session, piece: u64) -> Option<u64> {
    let changing = session.downstream_modules_ctx.get_mut::<Changing>()?;
    changing.ready += 1;
    changing.announced += piece;
    Some(changing.expected())
}

struct Builder;

impl HttpModuleBuilder for Builder {
    fn init(&self) -> Module {
        Box::new(Changing {
            transforms: Transforms::default(),
            ready: 0,
            ended: false,
            announced: 0,
            taken: 0,
            given: 0,
        })
    }
}

impl Changing {
    /// What became of those that were changed, and may become of the others: of the first piece nobody knows, and it is made
    /// up for with the second.
    fn expected(&self) -> u64 {
        let waiting = self.announced.saturating_sub(self.taken);
        match self.taken {
            0 => 0,
            taken => self.given + (waiting as f64 * self.given as f64 / taken as f64) as u64,
        }
    }

    fn pass(&mut self, piece: Bytes, then: Then) -> Result<Option<Bytes>> {
        self.taken += piece.len() as u64;
        let passed = self.transforms.pass(piece, then).map_err(|e| {
            // The backend's fault: the body is not what its header says.
            Error::because(ErrorType::InvalidHTTPHeader, "changing a body", e).into_up()
        })?;
        self.given += passed.len() as u64;
        Ok((!passed.is_empty()).then_some(passed))
    }

    fn end(&mut self) -> Result<Option<Bytes>> {
        match std::mem::replace(&mut self.ended, true) {
            true => Ok(None),
            false => self.pass(Bytes::new(), Then::End),
        }
    }
}

#[async_trait]
impl HttpModule for Changing {
    async fn response_header_filter(
        &mut self,
        head: &mut ResponseHeader,
        is_all: bool,
    ) -> Result<()> {
        if is_all && !head.status.is_informational() {
            // There is no body, not even an empty one, to which anything could be done.
            self.ended = true;
            head.remove_header(&header::CONTENT_ENCODING);
            head.remove_header(&header::TRANSFER_ENCODING);
            head.insert_header(header::CONTENT_LENGTH, 0)?;
        }
        Ok(())
    }

    fn response_body_filter(&mut self, body: &mut Option<Bytes>, is_last: bool) -> Result<()> {
        self.ready = self.ready.saturating_sub(1);
        let piece = body.take().unwrap_or_default();
        if self.ended {
            return Ok(());
        }
        let then = match (is_last, self.ready) {
            (true, _) => Then::End,
            (false, 0) => Then::Pause,
            (false, _) => Then::Next,
        };
        self.ended = is_last;
        *body = self.pass(piece, then)?;
        Ok(())
    }

    /// The end of the body is still to come, and nothing can come behind it: the trailers are lost, which they may be
    /// anywhere on their way (RFC 9110 section 6.5.1).
    fn response_trailer_filter(
        &mut self,
        _trailers: &mut Option<Box<HeaderMap>>,
    ) -> Result<Option<Bytes>> {
        self.end()
    }

    fn response_done_filter(&mut self) -> Result<Option<Bytes>> {
        self.end()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
