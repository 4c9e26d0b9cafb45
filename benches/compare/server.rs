//! The three servers, configured alike, and the origin behind them.
//!
//! Alike means: one worker; HTTP/1.1 and idle connections kept towards the origin; the client's `Host` and the
//! `X-Forwarded-*` headers passed on (weir always does); the same certificate and the same TLS 1.3 cipher suite; no limit
//! on requests per connection; no access log, except in the case that measures it, where both servers buffer it.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::load::{self, Target};
use crate::process::Process;
use crate::quiet;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    Weir,
    Nginx,
    Haproxy,
}

impl Server {
    pub const ALL: [Server; 3] = [Server::Weir, Server::Nginx, Server::Haproxy];

    pub const fn name(self) -> &'static str {
        match self {
            Server::Weir => "weir",
            Server::Nginx => "nginx",
            Server::Haproxy => "haproxy",
        }
    }
}

/// Which of a server's addresses requests go to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Plain,
    Tls,
    /// weir's service for files alone; for the others the same as `Plain`.
    Companion,
}

/// What all measurements share: a directory with certificate, bodies and configurations, and the addresses.
pub struct Bench {
    dir: PathBuf,
    weir: PathBuf,
    cpu: usize,
    /// How many connections a server takes.
    connections: usize,
    http: SocketAddr,
    https: SocketAddr,
    companion: SocketAddr,
    origin: SocketAddr,
}

pub struct Running {
    pub process: Process,
    http: SocketAddr,
    https: SocketAddr,
    companion: SocketAddr,
}

impl Running {
    pub fn target(&self, path: &'static str, door: Door) -> Target {
        let address = match door {
            Door::Plain => self.http,
            Door::Tls => self.https,
            Door::Companion => self.companion,
        };
        let tls = door == Door::Tls;
        Target { address, path, tls }
    }
}

impl Bench {
    pub fn prepare(weir: &Path, cpu: usize, connections: usize) -> Result<Self> {
        // Below the target directory: what an interrupted run leaves behind goes with `cargo clean`.
        let dir =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("compare-{}", std::process::id()));
        let [http, https, companion, origin] = free_addresses()?;
        let bench = Bench {
            dir,
            weir: weir.to_owned(),
            cpu,
            connections,
            http,
            https,
            companion,
            origin,
        };
        bench
            .write_files()
            .with_context(|| bench.dir.display().to_string())?;
        Ok(bench)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn installed(&self, server: Server) -> bool {
        let program = self.program(server);
        let version = if server == Server::Weir {
            "--help"
        } else {
            "-v"
        };
        Command::new(program).arg(version).output().is_ok()
    }

    /// The origin runs beside the load generator; it is never the bottleneck of a proxy on a core of its own.
    pub fn start_origin(&self) -> Result<Process> {
        let mut command = Command::new(self.program(Server::Nginx));
        command
            .args(["-e", "stderr", "-c"])
            .arg(self.dir.join("origin.conf"));
        self.wait_for(command, "origin", self.origin)
    }

    /// The origin itself, with no server before it.
    pub fn origin_target(&self, path: &'static str) -> Target {
        Target {
            address: self.origin,
            path,
            tls: false,
        }
    }

    pub fn start(&self, server: Server, access_log: bool) -> Result<Running> {
        let conf = self.dir.join(conf_name(server, access_log));
        let mut command = Command::new("taskset");
        command
            .arg("-c")
            .arg(self.cpu.to_string())
            .arg(self.program(server));
        match server {
            Server::Weir => command.arg("-c"),
            Server::Nginx => command.args(["-e", "stderr", "-c"]), // not the system's error log
            Server::Haproxy => command.args(["-db", "-f"]),        // -db: stay in the foreground
        };
        command.arg(conf);
        let process = self.wait_for(command, server.name(), self.http)?;
        Ok(Running {
            process,
            http: self.http,
            https: self.https,
            companion: self.companion,
        })
    }

    fn wait_for(&self, command: Command, name: &str, address: SocketAddr) -> Result<Process> {
        let target = Target {
            address,
            path: "/",
            tls: false,
        };
        Process::start(command, &self.dir.join(format!("{name}.out")), || {
            load::check(&target).is_ok()
        })
    }

    fn program(&self, server: Server) -> PathBuf {
        match server {
            Server::Weir => self.weir.clone(),
            // Debian puts the other two where the PATH of an ordinary user does not look.
            _ => [Path::new("/usr/local/sbin"), Path::new("/usr/sbin")]
                .map(|dir| dir.join(server.name()))
                .into_iter()
                .find(|path| path.exists())
                .unwrap_or_else(|| server.name().into()),
        }
    }

    fn write_files(&self) -> Result<()> {
        let dir = &self.dir;
        fs::create_dir_all(dir.join("www/static"))?;
        for (name, size) in [
            ("64k", 64 << 10),
            ("10m", 10 << 20),
            ("static/1k", 1 << 10),
            ("static/100k", 100 << 10),
            ("static/10m", 10 << 20),
        ] {
            fs::write(
                dir.join("www").join(name),
                b"0123456789abcde\n".repeat(size / 16),
            )?;
        }

        quiet(
            Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                ])
                .args([
                    "-days",
                    "7",
                    "-subj",
                    "/CN=localhost",
                    "-addext",
                    "subjectAltName=DNS:localhost,IP:127.0.0.1",
                ])
                .arg("-keyout")
                .arg(dir.join("key.pem"))
                .arg("-out")
                .arg(dir.join("cert.pem")),
        )?;
        let both =
            fs::read_to_string(dir.join("cert.pem"))? + &fs::read_to_string(dir.join("key.pem"))?;
        fs::write(dir.join("both.pem"), both)?; // haproxy wants them in one file

        fs::write(dir.join("origin.conf"), self.origin_conf())?;
        for access_log in [false, true] {
            fs::write(
                dir.join(conf_name(Server::Weir, access_log)),
                self.weir_conf(access_log),
            )?;
            fs::write(
                dir.join(conf_name(Server::Nginx, access_log)),
                self.nginx_conf(access_log),
            )?;
        }
        fs::write(
            dir.join(conf_name(Server::Haproxy, false)),
            self.haproxy_conf(),
        )?;
        Ok(())
    }

    fn weir_conf(&self, access_log: bool) -> String {
        let Bench {
            http,
            https,
            companion,
            origin,
            connections,
            ..
        } = self;
        let dir = self.dir.display();
        let access = if access_log {
            "{ file: weir-access.log, format: combined }"
        } else {
            "off"
        };
        format!(
            r#"version: 1
threads: 1
pid_file: {dir}/weir.pid
upgrade_sock: {dir}/weir.sock
log: {{ access: {access} }}
pools:
  origin: {{ backends: ["{origin}"] }}
listeners:
  http: {{ bind: "{http}", http: {{ keepalive_requests: 4294967295 }}, limits: {{ connections: {connections} }} }}
  https:
    bind: "{https}"
    http: {{ keepalive_requests: 4294967295 }}
    tls: {{ certificates: [{{ cert: cert.pem, key: key.pem }}] }}
static: {{ companion: {{ bind: "{companion}", root: www }} }}
sites:
  bench:
    hosts: ["*"]
    routes:
      - match: {{ prefix: /static }}
        files: www
      - proxy: origin
"#
        )
    }

    fn nginx_conf(&self, access_log: bool) -> String {
        let Bench {
            http,
            https,
            companion,
            origin,
            ..
        } = self;
        let dir = self.dir.display();
        let access = if access_log {
            format!("{dir}/nginx-access.log combined buffer=64k flush=1s")
        } else {
            "off".to_owned()
        };
        let head = nginx_head(&self.dir, "nginx", self.connections);
        format!(
            r#"{head}
    access_log {access};
    upstream origin {{
        server {origin};
        keepalive 128;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {http} backlog=4096;
        listen {companion} backlog=4096;
        listen {https} ssl http2 backlog=4096;
        open_file_cache max=10000 inactive=60s;
        open_file_cache_valid 1s;
        ssl_certificate {dir}/cert.pem;
        ssl_certificate_key {dir}/key.pem;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
        root {dir}/www;
        client_max_body_size 0;
        location /static/ {{ }}
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_max_temp_file_size 0; # no detour over the disk when the client is slower than the origin
        }}
    }}
}}
"#
        )
    }

    fn haproxy_conf(&self) -> String {
        let Bench {
            http,
            https,
            origin,
            ..
        } = self;
        let dir = self.dir.display();
        // `http-reuse always`: by default haproxy opens a connection to the origin for the first request of each client
        format!(
            "global
    nbthread 1
    maxconn 8000
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
defaults
    mode http
    timeout connect 3s
    timeout client 75s
    timeout server 60s
    http-reuse always
frontend bench
    bind {http}
    bind {https} ssl crt {dir}/both.pem alpn h2,http/1.1
    default_backend origin
backend origin
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
    http-request set-header X-Forwarded-Proto http unless {{ ssl_fc }}
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    server origin {origin}
"
        )
    }

    fn origin_conf(&self) -> String {
        let head = nginx_head(&self.dir, "origin", self.connections);
        let origin = self.origin;
        let dir = self.dir.display();
        format!(
            r#"{head}
    access_log off;
    default_type text/plain;
    server {{
        listen {origin} backlog=4096;
        root {dir}/www;
        location = / {{ return 200 "hello from the origin\n"; }}
        location = /sink {{
            client_max_body_size 0;
            client_body_buffer_size 64k;
            proxy_pass http://{origin}/; # once it has all of the body
        }}
    }}
}}
"#
        )
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What the nginx under test and the nginx that is the origin have in common; `http` is left open.
fn nginx_head(dir: &Path, name: &str, connections: usize) -> String {
    let dir = dir.display();
    // As root nginx would change to another user, who may not be allowed to read the target directory.
    let user = if nix::unistd::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    // As anybody else it may not write to the system's directories for temporary files.
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("    {what}_temp_path {dir}/{name}-{what};\n"))
        .concat();
    format!(
        "daemon off;
{user}
pid {dir}/{name}.pid;
error_log stderr error;
worker_processes 1;
events {{ worker_connections {connections}; }}
http {{
{temporary}    client_header_timeout 10s; # weir's default, which slow clients feel
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;"
    )
}

fn conf_name(server: Server, access_log: bool) -> String {
    format!(
        "{}{}.conf",
        server.name(),
        if access_log { "-log" } else { "" }
    )
}

/// Loopback addresses that nobody listens on at this moment.
fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    // All are bound before the first is let go: no two are the same.
    let listeners: Vec<TcpListener> = (0..N)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()
        .context("no free port")?;
    let mut addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr()?;
    }
    Ok(addresses)
}
