//! What the page is given.

use tidegate_certs::DevCertificates;
use tidegate_transport::clock;

use super::*;

fn get(routes: &Routes, method: Method, path: &str) -> Option<Response<Bytes>> {
    routes(&Request::builder().method(method).uri(path).body(()).unwrap())
}

fn filled() -> (Routes, Arc<CertStore>) {
    let dev = DevCertificates::ephemeral(&[], clock::wall()).unwrap();
    let store = Arc::new(CertStore::from_dev(dev));
    let demo = Demo::default();
    let routes = routes(&demo);
    assert_eq!(get(&routes, Method::GET, "/dev.json").unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    let address = |text: &str| Some(text.parse().unwrap());
    let addresses =
        Addresses { quic: address("127.0.0.1:1"), tls: None, plain: address("0.0.0.0:2"), http3: None };
    demo.fill(&addresses, address("[::]:3"), Arc::clone(&store));
    (routes, store)
}

#[test]
fn facts_hold_real_ports_and_the_current_certificate() {
    let (routes, store) = filled();
    let response = get(&routes, Method::GET, "/dev.json").unwrap();
    let facts: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(
        facts,
        json!({
            "webtransport": "https://127.0.0.1:1/v1/connect",
            "websocket": "ws://127.0.0.1:2/v1/connect",
            "longpoll": "http://127.0.0.1:2/v1/poll",
            "certificate_hash": store.hash().to_base64(),
            "publish": "http://[::1]:3/v1/publish",
        })
    );
    let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.contains(
        "connect-src 'self' https://127.0.0.1:1 ws://127.0.0.1:2 http://127.0.0.1:2 http://[::1]:3;"
    ));
}

#[test]
fn the_sdk_is_embedded_and_everything_else_is_left_to_the_edge() {
    let (routes, _) = filled();
    let sdk = get(&routes, Method::GET, "/sdk/index.js").unwrap();
    assert_eq!(sdk.headers()[header::CONTENT_TYPE], "text/javascript; charset=utf-8");
    assert!(!sdk.body().is_empty());
    for path in ["/v1/poll", "/../Cargo.toml", "/sdk/", "/sdk/../../rust/src/lib.rs", "/nothing.js"] {
        assert!(get(&routes, Method::GET, path).is_none(), "{path}");
    }
    assert!(get(&routes, Method::POST, "/dev.json").is_none());
}

#[test]
fn every_embedded_file_has_a_kind() {
    assert!(ASSETS.iter().all(|(path, _)| asset(path).is_some()));
}
