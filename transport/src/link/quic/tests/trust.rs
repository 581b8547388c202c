//! Who is let in, and what those who are not are told.

use super::*;

#[tokio::test]
async fn both_ends_learn_who_is_there() {
    let pair = Pair::new(LinkConfig::default()).await;
    assert_eq!(pair.core.hello(), &hello("edge-1"));
    let welcome = pair.edge.welcome();
    assert_eq!((welcome.node.as_str(), welcome.region.as_str()), ("core-1", "eu"));
    assert_eq!((welcome.version, welcome.partitions), (2, PARTITIONS));
    assert_eq!(pair.core.remote_address().ip(), pair.edge.remote_address().ip());
}

#[tokio::test]
async fn a_name_with_several_addresses_is_dialled_at_each() {
    let cluster = Cluster::new();
    let listener = cluster.listener("core-1", LinkConfig::default());
    // Where this is `::1` first, nobody answers there.
    let address = format!("localhost:{}", listener.local_address().port());
    let pair = Pair::with(&cluster, listener, &address, LinkConfig::default()).await;
    assert_eq!(pair.edge.welcome().node.as_str(), "core-1");
}

#[tokio::test]
async fn an_address_that_is_silent_hides_no_reason() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let listener = cluster.listener("core-1", LinkConfig::default());
    let dialer = other.dialer("edge-1", LinkConfig::default());
    let address = format!("localhost:{}", listener.local_address().port());
    let (error, _) = soon(async {
        tokio::join!(dialer.dial(&address, hello("edge-1")), async {
            listener.accept().await.unwrap().greet(|_| unreachable!("nobody says hello")).await
        })
    })
    .await;
    assert!(matches!(error, Err(DialError::Untrusted { .. })), "{error:?}");
}

#[tokio::test]
async fn names_of_hosts_are_names_of_nodes() {
    let cluster = Cluster::new();
    let listener = cluster.listener("Core_1.Rack-2", LinkConfig::default());
    let dialer = cluster.dialer("Edge_1", LinkConfig::default());
    let address = listener.local_address().to_string();
    let (edge, core) = tokio::join!(dialer.dial(&address, hello("edge_1")), async {
        listener.accept().await.unwrap().greet(|_| Ok(greeting("Core_1.Rack-2"))).await
    });
    assert_eq!(edge.unwrap().welcome().node.as_str(), "Core_1.Rack-2");
    assert_eq!(core.unwrap().hello().node.as_str(), "edge_1");
}

#[tokio::test]
async fn nobody_gets_in_without_a_certificate() {
    let cluster = Cluster::new();
    let tls = tidegate_certs::client_config_with_roots(cluster.0.roots().unwrap(), &[ALPN_LINK]).unwrap();
    let dialer = LinkDialer::new(Arc::new(tls), LinkConfig::default()).unwrap();
    let error = refused_in_handshake(&cluster, dialer).await;
    assert!(matches!(error, DialError::Unwelcome { .. }), "{error}");
}

#[tokio::test]
async fn nobody_gets_in_with_a_certificate_of_another_cluster() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    // It trusts the core; the core does not trust it.
    let tls = link_client_config(other.store("edge-1"), cluster.0.roots().unwrap(), &[ALPN_LINK]).unwrap();
    let dialer = LinkDialer::new(Arc::new(tls), LinkConfig::default()).unwrap();
    let error = refused_in_handshake(&cluster, dialer).await;
    assert!(matches!(error, DialError::Unwelcome { .. }), "{error}");
}

#[tokio::test]
async fn nobody_gets_in_whose_certificate_has_expired() {
    let cluster = Cluster::new();
    let past = clock::wall() - 3 * DAY;
    let authority = &cluster.0;
    let certificate = authority.issue("edge-1", &[], Duration::from_secs(3600), past).unwrap();
    let store = Arc::new(CertStore::fixed(certificate.certificate()));
    let tls = link_client_config(store, authority.roots().unwrap(), &[ALPN_LINK]).unwrap();
    let error =
        refused_in_handshake(&cluster, LinkDialer::new(Arc::new(tls), LinkConfig::default()).unwrap()).await;
    assert!(matches!(error, DialError::Unwelcome { .. }), "{error}");
}

#[tokio::test]
async fn a_core_of_another_cluster_is_not_trusted() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let dialer = other.dialer("edge-1", LinkConfig::default());
    let error = refused_in_handshake(&cluster, dialer).await;
    assert!(matches!(error, DialError::Untrusted { .. }), "{error}");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn another_application_is_told_apart() {
    let cluster = Cluster::new();
    let tls = link_client_config(cluster.store("edge-1"), cluster.0.roots().unwrap(), &[b"h3"]).unwrap();
    let dialer = LinkDialer::new(Arc::new(tls), LinkConfig::default()).unwrap();
    let error = refused_in_handshake(&cluster, dialer).await;
    assert!(matches!(error, DialError::Unwelcome { .. }), "{error}");
}

#[tokio::test]
async fn a_node_must_have_the_name_that_it_gives() {
    let error = refused(hello("edge-2"), |_| unreachable!("it is not asked")).await;
    assert_eq!(error, "the core refused: the certificate is not for a node named edge-2");
}

#[tokio::test]
async fn an_address_is_no_name() {
    let error = refused(hello("127.0.0.1"), |_| unreachable!("it is not asked")).await;
    assert_eq!(error, "the core refused: the certificate is not for a node named 127.0.0.1");
}

#[tokio::test]
async fn versions_must_meet() {
    let ours = Hello { versions: 7..=9, ..hello("edge-1") };
    let error = refused(ours, |_| unreachable!("it is not asked")).await;
    assert_eq!(
        error,
        "the core refused: no common version of the link: edge-1 speaks versions 7 to 9, this node versions 1 to 2"
    );
}

#[tokio::test]
async fn a_core_may_have_its_own_reasons() {
    let error = refused(hello("edge-1"), |hello| Err(format!("no edges of {} here", hello.region.as_str())));
    assert_eq!(error.await, "the core refused: no edges of eu here");
}

#[tokio::test]
async fn a_core_must_have_the_name_that_it_gives() {
    let cluster = Cluster::new();
    let listener = cluster.listener("core-1", LinkConfig::default());
    let dialer = cluster.dialer("edge-1", LinkConfig::default());
    let address = listener.local_address().to_string();
    let (edge, core) = tokio::join!(dialer.dial(&address, hello("edge-1")), async {
        listener.accept().await.unwrap().greet(|_| Ok(greeting("core-2"))).await
    });
    let error = edge.unwrap_err();
    assert!(matches!(&error, DialError::WrongName { node } if node == "core-2"), "{error}");
    // Nothing is left of it there.
    soon(core.unwrap().closed()).await;
}

#[tokio::test]
async fn where_nobody_answers_dialling_ends_in_time() {
    let config = LinkConfig { handshake_timeout: Duration::from_millis(300), ..LinkConfig::default() };
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let dialer = Cluster::new().dialer("edge-1", config);
    let error = soon(dialer.dial(&silent.local_addr().unwrap().to_string(), hello("edge-1"))).await;
    assert!(matches!(error, Err(DialError::Timeout { .. })));
    let error = dialer.dial("core-1", hello("edge-1")).await;
    assert!(matches!(error, Err(DialError::Address { .. })));
}

#[tokio::test]
async fn one_connection_too_many_is_refused() {
    let cluster = Cluster::new();
    let config = LinkConfig { max_connections: 0, ..LinkConfig::default() };
    let listener = cluster.listener("core-1", config);
    let dialer = cluster.dialer("edge-1", LinkConfig::default());
    let address = listener.local_address().to_string();
    let error = tokio::select! {
        dialled = dialer.dial(&address, hello("edge-1")) => dialled.unwrap_err(),
        _ = listener.accept() => unreachable!("nobody is let in"),
    };
    assert!(matches!(error, DialError::Lost { .. }), "{error}");
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for() {
    let cluster = Cluster::new();
    let config = LinkConfig { handshake_timeout: Duration::from_millis(300), ..LinkConfig::default() };
    let listener = cluster.listener("core-1", config);
    let connection = raw(&cluster, &listener);
    let (greeted, connection) = soon(async {
        tokio::join!(
            async { listener.accept().await.unwrap().greet(|_| unreachable!("no hello")).await },
            connection
        )
    })
    .await;
    assert!(matches!(greeted, Err(GreetError::Timeout(_))));
    soon(connection.closed()).await;
}

#[tokio::test]
async fn something_else_than_a_hello_ends_the_connection() {
    let cluster = Cluster::new();
    let listener = cluster.listener("core-1", LinkConfig::default());
    let open = Control::Open { partition: 0 };
    let (greeted, connection) = tokio::join!(
        async { listener.accept().await.unwrap().greet(|_| unreachable!("no hello")).await },
        async {
            let connection = raw(&cluster, &listener).await;
            let (mut send, _recv) = connection.open_bi().await.unwrap();
            control::write(&mut send, &open).await.unwrap();
            connection.closed().await;
            connection
        }
    );
    assert!(matches!(greeted, Err(GreetError::Protocol(_))));
    assert!(connection.close_reason().is_some());
}

#[test]
fn limits_that_let_nothing_through_are_refused() {
    let good = LinkConfig::default();
    assert!(good.transport(1).is_ok());
    for bad in [
        LinkConfig { stream_window: 0, ..good.clone() },
        LinkConfig { send_queue: 0, ..good.clone() },
        LinkConfig { idle_timeout: Duration::ZERO, ..good.clone() },
        LinkConfig { keep_alive: Duration::from_secs(3), ..good.clone() },
        LinkConfig { idle_timeout: Duration::MAX, ..good.clone() },
    ] {
        assert!(matches!(bad.transport(1), Err(LinkSetupError::Settings(_))), "{bad:?}");
    }
}

/// Dials `core-1` of this cluster, which sees no hello.
async fn refused_in_handshake(cluster: &Cluster, dialer: LinkDialer) -> DialError {
    let listener = cluster.listener("core-1", LinkConfig::default());
    let address = listener.local_address().to_string();
    let (edge, core) = soon(async {
        tokio::join!(dialer.dial(&address, hello("edge-1")), async {
            listener.accept().await.unwrap().greet(|_| unreachable!("nobody says hello")).await
        })
    })
    .await;
    assert!(matches!(core, Err(GreetError::Handshake(_))), "{core:?}");
    edge.unwrap_err()
}

/// What `edge-1` is told where its hello is not welcome.
async fn refused(hello: Hello, decide: impl FnOnce(&Hello) -> Result<Greeting, String> + Send) -> String {
    let cluster = Cluster::new();
    let listener = cluster.listener("core-1", LinkConfig::default());
    let dialer = cluster.dialer("edge-1", LinkConfig::default());
    let address = listener.local_address().to_string();
    let (edge, core) = soon(async {
        tokio::join!(dialer.dial(&address, hello), async {
            listener.accept().await.unwrap().greet(decide).await
        })
    })
    .await;
    assert!(matches!(core, Err(GreetError::Refused(_))), "{core:?}");
    let error = edge.unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }), "{error}");
    error.to_string()
}
