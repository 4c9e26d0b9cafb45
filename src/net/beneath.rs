//! What Pingora asks of a stream beside its bytes.

/// Has a stream that stands in front of another answer as that one does.
macro_rules! ask_beneath {
    ([$($generics:tt)*] $name:ty, |$this:ident| $beneath:expr) => {
        const _: () = {
            use std::sync::Arc;

            use pingora::protocols::raw_connect::ProxyDigest;
            use pingora::protocols::tls::{SslDigest, TlsRef};
            use pingora::protocols::{
                ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, SocketDigest, Ssl,
                TimingDigest, UniqueID, UniqueIDType,
            };

            impl<$($generics)*> UniqueID for $name {
                fn id(&self) -> UniqueIDType {
                    let $this = self;
                    $beneath.id()
                }
            }

            impl<$($generics)*> Ssl for $name {
                fn get_ssl(&self) -> Option<&TlsRef> {
                    let $this = self;
                    $beneath.get_ssl()
                }

                fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
                    let $this = self;
                    $beneath.get_ssl_digest()
                }

                fn selected_alpn_proto(&self) -> Option<ALPN> {
                    let $this = self;
                    $beneath.selected_alpn_proto()
                }
            }

            #[async_trait::async_trait]
            impl<$($generics)*> Peek for $name {}

            impl<$($generics)*> GetTimingDigest for $name {
                fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
                    let $this = self;
                    $beneath.get_timing_digest()
                }
            }

            impl<$($generics)*> GetProxyDigest for $name {
                fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
                    let $this = self;
                    $beneath.get_proxy_digest()
                }
            }

            impl<$($generics)*> GetSocketDigest for $name {
                fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
                    let $this = self;
                    $beneath.get_socket_digest()
                }
            }
        };
    };
}
