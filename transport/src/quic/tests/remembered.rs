//! Clients that were here before: TLS sessions go on, and addresses are known.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::StatusCode;
use quinn::VarInt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tidegate_certs::crypto_provider;

use super::early::say_connect;
use super::*;

/// Trusts everybody, and counts: a handshake that is resumed shows no certificate.
#[derive(Debug, Default)]
struct Counter(AtomicUsize);

impl ServerCertVerifier for Counter {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC is TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = crypto_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn dialer(alpn: &[u8], early_data: bool) -> (QuicDialer, Arc<Counter>) {
    let counter = Arc::new(Counter::default());
    let mut tls = rustls::ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(counter.clone())
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    (QuicDialer::new(tls, DialConfig { early_data, ..DialConfig::default() }).unwrap(), counter)
}

/// Lets a client in that has proved its address; true where it had to be asked to.
async fn admit(server: &Server) -> (Pending, bool) {
    let incoming = server.endpoints[0].accept().await.unwrap();
    if incoming.is_validated() {
        return (incoming.handshake().await.unwrap(), false);
    }
    incoming.retry();
    let incoming = server.endpoints[0].accept().await.unwrap();
    assert!(incoming.is_validated());
    (incoming.handshake().await.unwrap(), true)
}

/// Dials, and hangs up when the server has answered something: what it gives to remember came before that. True where the
/// address was to be proved.
async fn meet(server: &Server, dialer: &QuicDialer, name: &str) -> bool {
    let client = async {
        let client = dialer.dial(server.address, name, false).await.unwrap();
        assert!(!client.is_early());
        let (_send, mut control) = say_connect(&client).await;
        assert_eq!(control.next().await, Some(ping_frame()));
        client.connection().close(VarInt::from_u32(0), b"");
    };
    let serve = async {
        let (Pending::Quic(pending), asked) = admit(server).await else { panic!("not native") };
        let mut connection = pending.accept().await.unwrap();
        assert_eq!(frames(&mut connection).await, [connect_frame()]);
        connection.send(Lane::Control, &encode_delimited(&ping_frame())).unwrap();
        assert!(matches!(recv(&mut connection).await, Ok(Inbound::Closed { .. })));
        asked
    };
    tokio::join!(client, serve).1
}

async fn meet_web_transport(server: &Server, dialer: &QuicDialer) -> bool {
    let client = async {
        let client = dialer.dial(server.address, "localhost", false).await.unwrap();
        let url: url::Url = format!("https://localhost:{}/", server.address.port()).parse().unwrap();
        let answer = web_transport_quinn::Session::connect(client.connection().clone(), url).await;
        assert!(answer.is_err(), "rejected");
    };
    let serve = async {
        let (Pending::WebTransport(pending), asked) = admit(server).await else { panic!("native") };
        pending.reject(StatusCode::NOT_FOUND).await;
        asked
    };
    tokio::join!(client, serve).1
}

#[tokio::test]
async fn a_dialer_and_its_clones_resume_and_show_where_they_are_whether_or_not_early_data_is_on() {
    for early_data in [true, false] {
        let server = Server::start();
        let (dialer, certificates) = dialer(ALPN_NATIVE, early_data);
        assert!(meet(&server, &dialer, "localhost").await);
        assert_eq!(certificates.0.load(Ordering::Relaxed), 1);
        for _ in 0..4 {
            assert!(!meet(&server, &dialer.clone(), "localhost").await, "a token for each");
        }
        assert_eq!(certificates.0.load(Ordering::Relaxed), 1, "a full handshake");
        // What one name gave is shown to no other.
        assert!(meet(&server, &dialer, "127.0.0.1").await);
        assert_eq!(certificates.0.load(Ordering::Relaxed), 2);
    }
}

#[tokio::test]
async fn web_transport_is_resumed_too() {
    let server = Server::start();
    let (dialer, certificates) = dialer(ALPN_WEBTRANSPORT, false);
    let asked = [
        meet_web_transport(&server, &dialer).await,
        meet_web_transport(&server, &dialer).await,
        meet_web_transport(&server, &dialer).await,
    ];
    assert_eq!((asked, certificates.0.load(Ordering::Relaxed)), ([true, false, false], 1));
}
