//! Clients that show exactly what came over the wire: raw HTTP/1 on TCP, TLS and unix sockets, and HTTP/2 on TLS.

use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use boring::ssl::{SslConnector, SslMethod, SslVerifyMode, SslVersion};
use bytes::Bytes;
use pingora::tls::tokio_ssl::SslStream;

use super::message::{Framing, Head, Headers};
use super::websocket::Frame;
use super::{certs, runtime};

/// How long a client waits for the next byte: longer than any time limit in the tests' configurations.
pub const SILENCE: Duration = Duration::from_secs(20);

/// A request to be sent as it stands: nothing is checked or added but `Content-Length` for a body.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub host: String,
    pub headers: Headers,
    pub body: Vec<u8>,
}

/// An answer, or as much of it as came.
#[derive(Clone, Debug, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Headers,
    /// What came behind the body; of HTTP/2 only.
    pub trailers: Headers,
    pub body: Vec<u8>,
    /// Length of the body, also where it was counted and not kept.
    pub length: u64,
    /// The body ended as its framing announces, not by a close or reset in its middle.
    pub complete: bool,
}

pub fn get(target: &str) -> Request {
    Request::new("GET", target)
}

pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Request {
    let mut request = Request::new("POST", target);
    request.body = body.into();
    request
}

impl Request {
    pub fn new(method: &str, target: &str) -> Request {
        Request {
            method: method.to_owned(),
            target: target.to_owned(),
            host: "localhost".to_owned(),
            headers: Headers::default(),
            body: Vec::new(),
        }
    }

    pub fn host(mut self, host: &str) -> Request {
        self.host = host.to_owned();
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Request {
        self.headers.0.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let Request {
            method,
            target,
            host,
            headers,
            body,
        } = self;
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{headers}");
        if !body.is_empty() {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        let mut bytes = (text + "\r\n").into_bytes();
        bytes.extend(body);
        bytes
    }
}

impl Response {
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("a body in UTF-8")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }
}

/// One connection that speaks HTTP/1.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// What has been received and not been read yet.
    buffer: Vec<u8>,
    /// Names in the server's certificate, on TLS.
    pub certificate: Vec<String>,
    /// Protocol agreed on by ALPN, on TLS.
    pub protocol: Option<String>,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

impl Connection {
    pub fn tcp(address: SocketAddr) -> io::Result<Connection> {
        Ok(Connection::over(connect(address)?))
    }

    pub fn unix(path: &Path) -> io::Result<Connection> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Connection::over(stream))
    }

    /// TLS that asks for `server_name` (none when empty), offers HTTP/1.1 only and believes any certificate.
    pub fn tls(address: SocketAddr, server_name: &str) -> io::Result<Connection> {
        Connection::tls_within(address, server_name, None)
    }

    /// As [`Connection::tls`], with no version above `newest`.
    pub fn tls_within(
        address: SocketAddr,
        server_name: &str,
        newest: Option<SslVersion>,
    ) -> io::Result<Connection> {
        Connection::tls_over(connect(address)?, server_name, newest)
    }

    /// As [`Connection::tls`], with `ahead` sent before the handshake.
    pub fn tls_after(
        address: SocketAddr,
        ahead: &[u8],
        server_name: &str,
    ) -> io::Result<Connection> {
        let mut stream = connect(address)?;
        stream.write_all(ahead)?;
        Connection::tls_over(stream, server_name, None)
    }

    /// As [`Connection::tls`], but HTTP/2 is what it offers; nothing of that is sent.
    pub fn tls_for_http2(address: SocketAddr, server_name: &str) -> io::Result<Connection> {
        Connection::tls_offering(b"\x02h2", connect(address)?, server_name, None)
    }

    fn tls_over(
        stream: TcpStream,
        server_name: &str,
        newest: Option<SslVersion>,
    ) -> io::Result<Connection> {
        Connection::tls_offering(b"\x08http/1.1", stream, server_name, newest)
    }

    fn tls_offering(
        protocols: &[u8],
        stream: TcpStream,
        server_name: &str,
        newest: Option<SslVersion>,
    ) -> io::Result<Connection> {
        let mut connector = connector(protocols);
        connector.set_max_proto_version(newest)?;
        connector.set_min_proto_version(Some(SslVersion::TLS1))?;
        let configuration = connector.build().configure()?;
        let stream = configuration
            .verify_hostname(false)
            .use_server_name_indication(!server_name.is_empty())
            .connect(server_name, stream)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let certificate = stream.ssl().peer_certificate();
        let protocol = stream.ssl().selected_alpn_protocol().map(to_text);
        let mut connection = Connection::over(stream);
        connection.certificate = certificate.as_deref().map(certs::names).unwrap_or_default();
        connection.protocol = protocol;
        Ok(connection)
    }

    pub fn over(stream: impl Read + Write + Send + 'static) -> Connection {
        Connection {
            stream: Box::new(stream),
            buffer: Vec::new(),
            certificate: Vec::new(),
            protocol: None,
        }
    }

    /// Sends `request` and reads its answer.
    pub fn fetch(&mut self, request: &Request) -> io::Result<Response> {
        self.send(&request.to_bytes())?;
        self.read_answer(&request.method)
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    pub fn send_request(&mut self, request: &Request) -> io::Result<()> {
        self.send(&request.to_bytes())
    }

    /// Reads the answer to anything but HEAD.
    pub fn read(&mut self) -> io::Result<Response> {
        self.read_answer("GET")
    }

    fn read_answer(&mut self, method: &str) -> io::Result<Response> {
        let mut body = Vec::new();
        let mut response = self.read_into(method, |part| body.extend(part))?;
        response.body = body;
        Ok(response)
    }

    /// Reads an answer whose body is only counted.
    pub fn read_counting(&mut self) -> io::Result<Response> {
        self.read_into("GET", |_| {})
    }

    /// Reads an answer to `method`, handing its body to `take` as it comes. An error means that there was no answer;
    /// one that breaks off is returned as far as it came.
    pub fn read_into(&mut self, method: &str, mut take: impl FnMut(&[u8])) -> io::Result<Response> {
        let head = self.read_final_head()?;
        let status = head.word(1).parse().unwrap_or_default();
        let framing = match status {
            101 | 204 | 304 => Framing::Length(0),
            _ if method == "HEAD" => Framing::Length(0),
            _ => head.framing(),
        };
        let mut length = 0;
        let mut take = |part: &[u8]| {
            length += part.len() as u64;
            take(part);
        };
        let body = match framing {
            Framing::Length(length) => self.read_length(length, &mut take),
            Framing::Chunked => self.read_chunks(&mut take),
            Framing::Neither => self.read_to_end(&mut take),
        };
        Ok(Response {
            status,
            headers: head.headers,
            trailers: Headers::default(),
            body: Vec::new(),
            length,
            complete: body.is_ok(),
        })
    }

    /// Reads the head of an answer, past interim ones.
    pub fn read_final_head(&mut self) -> io::Result<Head> {
        loop {
            let head = self.read_head()?;
            if !matches!(head.word(1), "100" | "102" | "103") {
                return Ok(head);
            }
        }
    }

    pub fn read_head(&mut self) -> io::Result<Head> {
        loop {
            if let Some((head, length)) = Head::parse(&self.buffer) {
                self.buffer.drain(..length);
                return Ok(head);
            }
            self.receive()?;
        }
    }

    /// Reads a chunk of a chunked body; an empty one is the last.
    pub fn read_chunk(&mut self) -> io::Result<Vec<u8>> {
        let mut chunk = Vec::new();
        self.read_chunk_into(&mut |part| chunk.extend(part))?;
        Ok(chunk)
    }

    pub fn send_frame(&mut self, frame: &Frame) -> io::Result<()> {
        const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
        self.send(&frame.encode(Some(MASK)))
    }

    pub fn read_frame(&mut self) -> io::Result<Frame> {
        loop {
            if let Some((frame, length)) = Frame::decode(&self.buffer) {
                self.buffer.drain(..length);
                return Ok(frame);
            }
            self.receive()?;
        }
    }

    /// Waits until the server closes the connection; a reset or further bytes are an error.
    pub fn read_close(&mut self) -> io::Result<()> {
        match self.receive() {
            Err(error)
                if error.kind() == io::ErrorKind::UnexpectedEof && self.buffer.is_empty() =>
            {
                Ok(())
            }
            Err(error) => Err(error),
            Ok(()) => {
                let text = String::from_utf8_lossy(&self.buffer).into_owned();
                Err(io::Error::other(format!("got {text:?}")))
            }
        }
    }

    pub fn read_length(&mut self, length: u64, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.buffer.is_empty() {
                self.receive()?;
            }
            let part = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len());
            take(&self.buffer[..part]);
            self.buffer.drain(..part);
            left -= part as u64;
        }
        Ok(())
    }

    fn read_chunks(&mut self, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        while self.read_chunk_into(take)? > 0 {}
        Ok(())
    }

    fn read_chunk_into(&mut self, take: &mut dyn FnMut(&[u8])) -> io::Result<u64> {
        let line = self.read_line()?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
        self.read_length(length, take)?;
        // what follows the data of a chunk, or the (unused) trailers of the last one, is an empty line
        match self.read_line()?.as_str() {
            "" => Ok(length),
            line => Err(io::Error::other(format!("`{line}` behind a chunk"))),
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = to_text(&self.buffer[..end]);
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            self.receive()?;
        }
    }

    fn read_to_end(&mut self, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        loop {
            take(&self.buffer);
            self.buffer.clear();
            match self.receive() {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                result => result?,
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut bytes = [0; 64 * 1024];
        match self.stream.read(&mut bytes)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                self.buffer.extend(&bytes[..length]);
                Ok(())
            }
        }
    }
}

/// One connection that speaks HTTP/2.
#[derive(Clone)]
pub struct Http2 {
    sender: h2::client::SendRequest<Bytes>,
}

impl Http2 {
    /// Over TLS.
    pub fn connect(address: SocketAddr, server_name: &str) -> io::Result<Http2> {
        let opened = within_silence(open_http2(address, server_name));
        Ok(Http2 { sender: opened?? })
    }

    /// Without TLS, by prior knowledge.
    pub fn tcp(address: SocketAddr) -> io::Result<Http2> {
        let opened = within_silence(async {
            let stream = tokio::net::TcpStream::connect(address).await?;
            shake_hands(stream).await
        });
        Ok(Http2 { sender: opened?? })
    }

    pub fn fetch(&mut self, request: &Request) -> io::Result<Response> {
        self.fetch_all(std::slice::from_ref(request)).remove(0)
    }

    /// Sends all requests at once, as streams of the one connection. `NotConnected` means that a request was not sent
    /// at all, since the server has said goodbye before.
    pub fn fetch_all(&mut self, requests: &[Request]) -> Vec<io::Result<Response>> {
        let tasks = requests.iter().map(|request| {
            let exchange = self.clone().exchange(request.clone());
            runtime().spawn(async { tokio::time::timeout(SILENCE, exchange).await })
        });
        let tasks: Vec<_> = tasks.collect();
        let answers = tasks.into_iter().map(|task| {
            let answer = runtime().block_on(task).expect("a client does not panic");
            answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        });
        answers.collect()
    }

    /// Sends the header of a request, whose body follows part by part.
    pub fn open(&mut self, request: &Request) -> io::Result<Dialogue> {
        let opened = within_silence(async {
            let mut sender = self.sender.clone().ready().await?;
            sender.send_request(head_of(request), false)
        })?;
        let (response, body) = opened.map_err(io::Error::other)?;
        Ok(Dialogue {
            body,
            response: Some(response),
            answer: None,
        })
    }

    async fn exchange(self, request: Request) -> io::Result<Response> {
        let head = head_of(&request);
        let unsent = |error| io::Error::new(io::ErrorKind::NotConnected, error);
        let mut sender = self.sender.ready().await.map_err(unsent)?;
        let sent = sender.send_request(head, request.body.is_empty());
        let (response, mut body) = sent.map_err(unsent)?;
        if !request.body.is_empty() {
            body.send_data(request.body.into(), true)
                .map_err(io::Error::other)?;
        }

        let response = response.await.map_err(|error| match error.is_go_away() {
            // it crossed with the goodbye: the client is told that nobody has looked at it (RFC 9113 section 6.8)
            true if error.reason() == Some(h2::Reason::NO_ERROR) => unsent(error),
            _ => io::Error::other(error),
        })?;
        let (head, mut body) = response.into_parts();
        let mut response = Response {
            status: head.status.as_u16(),
            headers: to_headers(&head.headers),
            complete: true,
            ..Response::default()
        };
        while let Some(part) = body.data().await {
            let Ok(part) = part else {
                response.complete = false;
                break;
            };
            // a reset stream gives its window back by itself, and shows as an error of the next part
            let _ = body.flow_control().release_capacity(part.len());
            response.body.extend(&part);
        }
        response.length = response.body.len() as u64;
        match body.trailers().await {
            Ok(trailers) => response.trailers = to_headers(&trailers.unwrap_or_default()),
            Err(_) => response.complete = false,
        }
        Ok(response)
    }
}

/// A request and its answer on a stream of HTTP/2, both still under way.
pub struct Dialogue {
    body: h2::SendStream<Bytes>,
    response: Option<h2::client::ResponseFuture>,
    answer: Option<http::Response<h2::RecvStream>>,
}

impl Dialogue {
    pub fn status(&mut self) -> io::Result<u16> {
        let answer = within_silence(self.answer())??;
        Ok(answer.status().as_u16())
    }

    /// The answer, once its header is there.
    async fn answer(&mut self) -> io::Result<&mut http::Response<h2::RecvStream>> {
        if let Some(response) = self.response.take() {
            self.answer = Some(response.await.map_err(io::Error::other)?);
        }
        Ok(self.answer.as_mut().expect("a header came"))
    }

    pub fn say(&mut self, part: &str, end: bool) -> io::Result<()> {
        let part = Bytes::copy_from_slice(part.as_bytes());
        self.body.send_data(part, end).map_err(io::Error::other)
    }

    /// The next part of the answer, a text; `None` at its end.
    pub fn hear(&mut self) -> io::Result<Option<String>> {
        let part = self.hear_bytes()?;
        Ok(part.map(|part| to_text(&part)))
    }

    /// The next part of the answer; `None` at its end.
    pub fn hear_bytes(&mut self) -> io::Result<Option<Bytes>> {
        within_silence(async {
            let answer = self.answer().await?.body_mut();
            while let Some(part) = answer.data().await {
                let part = part.map_err(io::Error::other)?;
                let _ = answer.flow_control().release_capacity(part.len());
                // the end may be a frame of its own
                if !part.is_empty() {
                    return Ok(Some(part));
                }
            }
            Ok(None)
        })?
    }

    /// What stands behind the last part.
    pub fn trailers(mut self) -> io::Result<Headers> {
        let answer = self.answer.as_mut().expect("a header came");
        let trailers = within_silence(answer.body_mut().trailers())?.map_err(io::Error::other)?;
        Ok(to_headers(&trailers.unwrap_or_default()))
    }
}

fn head_of(request: &Request) -> http::Request<()> {
    let uri = format!("https://{}{}", request.host, request.target);
    let mut head = http::Request::builder()
        .method(request.method.as_str())
        .uri(uri);
    for (name, value) in &request.headers.0 {
        head = head.header(name, value);
    }
    head.body(()).expect("a valid request")
}

fn to_headers(fields: &http::HeaderMap) -> Headers {
    let each = fields.iter();
    let each = each.map(|(name, value)| (name.to_string(), to_text(value.as_bytes())));
    Headers(each.collect())
}

async fn open_http2(
    address: SocketAddr,
    server_name: &str,
) -> io::Result<h2::client::SendRequest<Bytes>> {
    let ssl = connector(b"\x02h2")
        .build()
        .configure()?
        .verify_hostname(false)
        .into_ssl(server_name)?;
    let stream = tokio::net::TcpStream::connect(address).await?;
    let mut stream = Box::pin(SslStream::new(ssl, stream)?);
    Pin::as_mut(&mut stream)
        .connect()
        .await
        .map_err(io::Error::other)?;
    shake_hands(stream).await
}

async fn shake_hands(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
) -> io::Result<h2::client::SendRequest<Bytes>> {
    let (sender, connection) = h2::client::handshake(stream)
        .await
        .map_err(io::Error::other)?;
    // its errors show in the streams
    tokio::spawn(connection);
    Ok(sender)
}

fn within_silence<T>(work: impl Future<Output = T>) -> io::Result<T> {
    runtime()
        .block_on(async { tokio::time::timeout(SILENCE, work).await })
        .map_err(|_| io::ErrorKind::TimedOut.into())
}

pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn connector(protocols: &[u8]) -> boring::ssl::SslConnectorBuilder {
    let mut connector = SslConnector::builder(SslMethod::tls()).expect("allocate");
    connector.set_verify(SslVerifyMode::NONE);
    connector
        .set_alpn_protos(protocols)
        .expect("valid protocol names");
    connector
}

fn to_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
