//! What went wrong with a backend, in few words: for the log and the status.

use std::io;

use pingora::{Error, ErrorType};

/// An error of Pingora's without its context.
pub fn of_error(error: &Error) -> String {
    match error.etype() {
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => {
            "no connection within the time limit".to_owned()
        }
        ErrorType::ReadTimedout => "no answer within the time limit".to_owned(),
        ErrorType::WriteTimedout => "the request was not taken within the time limit".to_owned(),
        ErrorType::ConnectionClosed => "connection closed before the end of the answer".to_owned(),
        ErrorType::InvalidHTTPHeader => "the answer is not HTTP".to_owned(),
        kind => match (io_cause(error), &error.context) {
            (Some(error), _) => of_io(error),
            // it may quote the peer at length
            (None, Some(context)) => context.as_str().trim().chars().take(200).collect(),
            (None, None) => kind.as_str().to_owned(),
        },
    }
}

/// What the system said, however deep it is wrapped.
fn io_cause(error: &Error) -> Option<&io::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error.root_cause());
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

/// `connection refused` of `Connection refused (os error 111)`.
pub fn of_io(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_told_in_lower_case_without_numbers() {
        assert_eq!(
            of_io(&io::Error::from_raw_os_error(111)),
            "connection refused"
        );
        assert_eq!(of_io(&io::Error::other("")), "");
    }

    #[test]
    fn the_context_of_an_error_is_left_out() {
        let refused = io::Error::from_raw_os_error(111);
        let error = Error::because(ErrorType::ConnectRefused, "peer: somebody", refused);
        assert_eq!(of_error(&error), "connection refused");
    }
}
