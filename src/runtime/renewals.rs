//! Certificates that are renewed: their files are looked at whether or not the document is watched, for who renews them
//! (certbot, cert-manager, a cron job) is seldom who reloads.
//!
//! Each goes its own way. A new one that is good is shown from the next handshake on; one that is not is refused, and the
//! one before stays, as does everything else.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::Live;
use super::certificates::days_left;
use super::watch::Watch;
use crate::issue::Dependency;
use crate::tls::{self, CertifiedKey, LoadError};

/// How many are looked at at a time. All of ten thousand take their turn within a minute, and cost little meanwhile.
const AT_ONCE: usize = 256;

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Files {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) password_file: Option<PathBuf>,
    pub(super) ocsp: Option<PathBuf>,
}

/// What is wrong with the files: by the key of the one at fault.
pub(super) struct Fault {
    pub(super) key: &'static str,
    pub(super) message: String,
    pub(super) hint: Option<&'static str>,
}

impl Files {
    pub(super) fn load(&self) -> Result<CertifiedKey, Fault> {
        let fault = |key| {
            move |message| Fault {
                key,
                message,
                hint: None,
            }
        };
        let passwords = match &self.password_file {
            Some(file) => tls::passwords(file).map_err(fault("password_file"))?,
            None => Vec::new(),
        };
        let mut loaded =
            CertifiedKey::load(&self.cert, &self.key, &passwords).map_err(|e| match e {
                LoadError::Cert(message) => fault("cert")(message),
                LoadError::Key(message) => fault("key")(message),
                LoadError::Mismatch => Fault {
                    key: "key",
                    message: "this key is not the certificate's".to_owned(),
                    hint: Some("certificate and key must have been made together"),
                },
            })?;
        if let Some(file) = &self.ocsp {
            loaded.staple_file(file).map_err(fault("ocsp"))?;
        }
        Ok(loaded)
    }

    /// To be made before they are loaded, so that no change is missed.
    pub(super) fn watch(&self) -> Watch {
        let files = [Some(&self.cert), Some(&self.key)];
        let more = [self.password_file.as_ref(), self.ocsp.as_ref()];
        let files = files.into_iter().chain(more).flatten().cloned();
        Watch::new(files.map(Dependency::File).collect())
    }
}

/// All certificates of a snapshot that come from files.
#[derive(Default)]
pub(super) struct Renewals {
    certificates: Vec<Renewal>,
    /// Whose turn it is.
    next: usize,
}

pub(super) struct Renewal {
    /// Who shows it, as a key path.
    pub(super) owner: String,
    pub(super) files: Files,
    pub(super) watch: Watch,
    pub(super) shown: Arc<CertifiedKey>,
}

/// What has become of a certificate whose files have changed.
pub(super) struct Outcome {
    owner: String,
    pub(super) shown: Arc<CertifiedKey>,
    /// Or why what the files hold is not shown.
    pub(super) next: Result<Arc<CertifiedKey>, String>,
}

impl Renewals {
    pub(super) fn add(&mut self, renewal: Renewal) {
        self.certificates.push(renewal);
    }

    /// Looks at the next ones, and loads those whose files have changed and not since the last look: certificate and key
    /// are rarely written at once.
    fn look(&mut self) -> Vec<Outcome> {
        let count = self.certificates.len();
        let mut outcomes = Vec::new();
        for _ in 0..count.min(AT_ONCE) {
            let renewal = &mut self.certificates[self.next % count];
            self.next = (self.next + 1) % count;
            outcomes.extend(renewal.look());
        }
        outcomes
    }
}

impl Renewal {
    fn look(&mut self) -> Option<Outcome> {
        if !self.watch.look() {
            return None;
        }
        self.watch = self.files.watch();
        let shown = self.shown.clone();
        let next = match self.files.load() {
            Ok(loaded) => {
                self.shown = Arc::new(loaded);
                Ok(self.shown.clone())
            }
            Err(Fault { key, message, .. }) => Err(format!("{key}: {message}")),
        };
        Some(Outcome {
            owner: self.owner.clone(),
            shown,
            next,
        })
    }
}

impl Outcome {
    fn log(&self, now: SystemTime) {
        let owner = &self.owner;
        match &self.next {
            Ok(next) => {
                let (names, days) = (next.names().join("`, `"), days_left(next, now));
                log::info!("{owner}: certificate of `{names}` renewed, days left: {days}");
                if next.has_stale_staple(now) {
                    log::warn!("{owner}: an OCSP response that is out of date: it is not shown");
                }
            }
            Err(why) => {
                let (names, days) = (self.shown.names().join("`, `"), days_left(&self.shown, now));
                log::error!(
                    "{owner}: the new certificate is refused: {why}; that of `{names}` stays, days left: {days}"
                );
            }
        }
    }
}

/// Looks at the files of certificates, and has `live` show those that were renewed, unless a reload, of which `committing`
/// is held, has come in between: that has read them itself. Blocks.
pub(super) fn renew(live: &Live, committing: &Mutex<()>) {
    // Not the snapshot: who holds one counts as a request, and a file system may hang.
    let renewals = live.load().renewals.clone();
    let outcomes = renewals.lock().look();
    if outcomes.is_empty() {
        return;
    }
    let _committing = committing.lock();
    let snapshot = live.load();
    if !Arc::ptr_eq(&snapshot.renewals, &renewals) {
        return;
    }
    let now = SystemTime::now();
    outcomes.iter().for_each(|outcome| outcome.log(now));
    let certificates = snapshot.certificates.load().with(&outcomes);
    snapshot.certificates.store(Arc::new(certificates));
    snapshot.present_certificates();
}
