//! What an error of Pingora means, for the client and the log.

use std::io;

use pingora::{Error, ErrorSource, ErrorType};

use crate::exchange::Failure;
use crate::http::head;

/// What an error says, as far as it is fit for a log: Pingora quotes all of a header that it cannot read.
pub fn brief(e: &Error) -> String {
    const LONG: usize = 400;
    let mut text = e.to_string();
    if let Some((cut, _)) = text.char_indices().nth(LONG) {
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

/// What a failure inside Pingora is for the client and the log.
pub fn failure_of(e: &Error) -> Failure {
    use ErrorType::{
        ConnectTimedout, FileReadError, H1Error, H2Error, InvalidHTTPHeader, ReadTimedout,
        TLSHandshakeTimedout, WriteError, WriteTimedout,
    };
    match (e.esource(), e.etype()) {
        // Of the body that was kept here for the client.
        (ErrorSource::Downstream, FileReadError) => Failure::Storage,
        (ErrorSource::Downstream, ReadTimedout | WriteTimedout) => Failure::ClientTimeout,
        (ErrorSource::Downstream, InvalidHTTPHeader) => Failure::BadRequest,
        (ErrorSource::Downstream, _) if is_bad_body(e) => Failure::BadRequest,
        (ErrorSource::Downstream, _) if is_overdue(e) => Failure::ClientTimeout,
        // Pingora does not say whom it could not write to where that is a client on HTTP/2.
        (ErrorSource::Downstream, _) | (ErrorSource::Unset, WriteError) => Failure::ClientClosed,
        (ErrorSource::Upstream, ConnectTimedout | TLSHandshakeTimedout) => {
            Failure::UpstreamConnectTimeout
        }
        (ErrorSource::Upstream, ReadTimedout | WriteTimedout) => Failure::UpstreamTimeout,
        (ErrorSource::Upstream, InvalidHTTPHeader | H1Error | H2Error) => Failure::UpstreamProtocol,
        (ErrorSource::Upstream, kind) if is_connecting(kind) => Failure::UpstreamConnect,
        (ErrorSource::Upstream, _) => Failure::UpstreamReset,
        _ => Failure::Internal,
    }
}

/// Whether the client's chunks are none, as the gate of its connection has found.
fn is_bad_body(e: &Error) -> bool {
    let cause = e.root_cause().downcast_ref::<io::Error>();
    let fault = cause.and_then(io::Error::get_ref);
    fault.is_some_and(|fault| fault.is::<head::Fault>())
}

/// Whether the client's body came too slowly, as the gate has found as well.
fn is_overdue(e: &Error) -> bool {
    let cause = e.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut)
}

fn is_connecting(kind: &ErrorType) -> bool {
    use ErrorType::{
        BindError, ConnectError, ConnectNoRoute, ConnectRefused, InvalidCert, SocketError,
        TLSHandshakeFailure,
    };
    matches!(
        kind,
        BindError
            | ConnectError
            | ConnectNoRoute
            | ConnectRefused
            | InvalidCert
            | SocketError
            | TLSHandshakeFailure
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_errors_are_cut_between_characters() {
        let long = Error::explain(ErrorType::InvalidHTTPHeader, "\u{fc}".repeat(10_000));
        let text = brief(&long);
        assert_eq!(text.chars().count(), 403);
        assert!(text.ends_with("\u{fc}..."));
        let short = Error::new(ErrorType::ConnectionClosed);
        assert_eq!(brief(&short), short.to_string());
    }
}
