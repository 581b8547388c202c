//! Packet and header protection (RFC 9001 §5.3 and §5.4) from bare keys: what a key expands to lives in
//! [`super::cache`] while it is in use.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::aead::quic::{self as header, HeaderProtectionKey};
use aws_lc_rs::aead::{self, Aad, LessSafeKey, UnboundKey};
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::cipher::{AeadKey, Iv, Nonce};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::quic::{self, PacketKey, Tag};
use rustls::{Error, SupportedCipherSuite, Tls13CipherSuite};

use super::cache::{Context, Place};

/// The same suites, with our keys for QUIC. Suites that we do not know stay as they are.
pub(super) fn thin(provider: &CryptoProvider) -> Arc<CryptoProvider> {
    let replace = |suite: &SupportedCipherSuite| {
        let thin = SUITES.iter().find(|thin| thin.common.suite == suite.suite());
        thin.map_or(*suite, SupportedCipherSuite::Tls13)
    };
    let cipher_suites = provider.cipher_suites.iter().map(replace).collect();
    Arc::new(CryptoProvider { cipher_suites, ..provider.clone() })
}

static SUITES: LazyLock<[Tls13CipherSuite; 3]> = LazyLock::new(|| {
    [
        suite(cipher_suite::TLS13_AES_128_GCM_SHA256, &Cipher::Aes128),
        suite(cipher_suite::TLS13_AES_256_GCM_SHA384, &Cipher::Aes256),
        suite(cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, &Cipher::ChaCha20),
    ]
});

fn suite(base: SupportedCipherSuite, quic: &'static Cipher) -> Tls13CipherSuite {
    let base = base.tls13().expect("a suite of TLS 1.3");
    let common = CipherSuiteCommon {
        suite: base.common.suite,
        hash_provider: base.common.hash_provider,
        confidentiality_limit: base.common.confidentiality_limit,
    };
    Tls13CipherSuite { common, hkdf_provider: base.hkdf_provider, aead_alg: base.aead_alg, quic: Some(quic) }
}

/// What protects packets in one suite.
#[derive(Debug, Clone, Copy)]
enum Cipher {
    Aes128,
    Aes256,
    ChaCha20,
}

impl Cipher {
    fn packet(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128 => &aead::AES_128_GCM,
            Self::Aes256 => &aead::AES_256_GCM,
            Self::ChaCha20 => &aead::CHACHA20_POLY1305,
        }
    }

    fn header(self) -> &'static header::Algorithm {
        match self {
            Self::Aes128 => &header::AES_128,
            Self::Aes256 => &header::AES_256,
            Self::ChaCha20 => &header::CHACHA20,
        }
    }
}

impl quic::Algorithm for Cipher {
    fn packet_key(&self, key: AeadKey, iv: Iv) -> Box<dyn PacketKey> {
        Box::new(ThinPacketKey { key, iv, cipher: *self, place: Place::default() })
    }

    fn header_protection_key(&self, key: AeadKey) -> Box<dyn quic::HeaderProtectionKey> {
        Box::new(ThinHeaderKey { key, cipher: *self, place: Place::default() })
    }

    fn aead_key_len(&self) -> usize {
        self.packet().key_len()
    }
}

/// 72 bytes, and 600 more where it is in use.
struct ThinPacketKey {
    key: AeadKey,
    iv: Iv,
    cipher: Cipher,
    place: Place,
}

impl ThinPacketKey {
    fn with<R>(&self, apply: impl FnOnce(&LessSafeKey) -> R) -> R {
        let build = || {
            let key = UnboundKey::new(self.cipher.packet(), self.key.as_ref());
            Context::Packet(LessSafeKey::new(key.expect("rustls made it as long as it was asked for")))
        };
        self.place.with(build, |context| match context {
            Context::Packet(key) => apply(key),
            Context::Header(_) => unreachable!("a place holds what was built for it"),
        })
    }

    fn nonce(&self, packet_number: u64) -> aead::Nonce {
        aead::Nonce::assume_unique_for_key(Nonce::new(&self.iv, packet_number).0)
    }
}

impl PacketKey for ThinPacketKey {
    fn encrypt_in_place(&self, packet_number: u64, header: &[u8], payload: &mut [u8]) -> Result<Tag, Error> {
        let nonce = self.nonce(packet_number);
        let sealed = self.with(|key| key.seal_in_place_separate_tag(nonce, Aad::from(header), payload));
        sealed.map(|tag| Tag::from(tag.as_ref())).map_err(|_| Error::EncryptError)
    }

    fn decrypt_in_place<'a>(
        &self,
        packet_number: u64,
        header: &[u8],
        payload: &'a mut [u8],
    ) -> Result<&'a [u8], Error> {
        let nonce = self.nonce(packet_number);
        let opened =
            self.with(|key| key.open_in_place(nonce, Aad::from(header), payload).map(|plain| plain.len()));
        let length = opened.map_err(|_| Error::DecryptError)?;
        Ok(&payload[..length])
    }

    fn tag_len(&self) -> usize {
        self.cipher.packet().tag_len()
    }

    // Both: RFC 9001 §6.6.
    fn confidentiality_limit(&self) -> u64 {
        match self.cipher {
            Cipher::Aes128 | Cipher::Aes256 => 1 << 23,
            Cipher::ChaCha20 => u64::MAX,
        }
    }

    fn integrity_limit(&self) -> u64 {
        match self.cipher {
            Cipher::Aes128 | Cipher::Aes256 => 1 << 52,
            Cipher::ChaCha20 => 1 << 36,
        }
    }
}

/// 64 bytes, and 500 more where it is in use.
struct ThinHeaderKey {
    key: AeadKey,
    cipher: Cipher,
    place: Place,
}

impl ThinHeaderKey {
    fn mask(&self, sample: &[u8]) -> Result<[u8; 5], Error> {
        let build = || {
            let key = HeaderProtectionKey::new(self.cipher.header(), self.key.as_ref());
            Context::Header(Box::new(key.expect("rustls made it as long as it was asked for")))
        };
        let mask = self.place.with(build, |context| match context {
            Context::Header(key) => key.new_mask(sample),
            Context::Packet(_) => unreachable!("a place holds what was built for it"),
        });
        mask.map_err(|_| Error::General("a sample of another length".into()))
    }

    /// RFC 9001 §5.4.1. `clear` is the first byte without protection, given the bits that its mask flips: the packet
    /// number's length is in it.
    fn apply(
        &self,
        sample: &[u8],
        first: &mut u8,
        packet_number: &mut [u8],
        clear: impl FnOnce(u8, u8) -> u8,
    ) -> Result<(), Error> {
        let [first_mask, number_mask @ ..] = self.mask(sample)?;
        if packet_number.len() > number_mask.len() {
            return Err(Error::General("a packet number that is too long".into()));
        }
        let long_header = *first & 0x80 != 0;
        let flips = first_mask & if long_header { 0x0f } else { 0x1f };
        let length = usize::from(clear(*first, flips) & 0x03) + 1;
        *first ^= flips;
        for (byte, mask) in packet_number.iter_mut().zip(number_mask).take(length) {
            *byte ^= mask;
        }
        Ok(())
    }
}

impl quic::HeaderProtectionKey for ThinHeaderKey {
    fn encrypt_in_place(&self, sample: &[u8], first: &mut u8, packet_number: &mut [u8]) -> Result<(), Error> {
        self.apply(sample, first, packet_number, |first, _| first)
    }

    fn decrypt_in_place(&self, sample: &[u8], first: &mut u8, packet_number: &mut [u8]) -> Result<(), Error> {
        self.apply(sample, first, packet_number, |first, flips| first ^ flips)
    }

    fn sample_len(&self) -> usize {
        self.cipher.header().sample_len()
    }
}

#[cfg(test)]
mod tests {
    use rustls::quic::Algorithm;

    use super::*;

    fn hex<const N: usize>(digits: &str) -> [u8; N] {
        std::array::from_fn(|index| u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).unwrap())
    }

    /// RFC 9001, appendix A.5.
    #[test]
    fn a_short_packet_looks_as_in_the_rfc() {
        let key = hex("c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8");
        let packet_key =
            Cipher::ChaCha20.packet_key(AeadKey::from(key), Iv::from(hex("e0459b3474bdd0e44a41c144")));
        let key = hex("25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4");
        let header_key = Cipher::ChaCha20.header_protection_key(AeadKey::from(key));
        let number = 654_360_564;

        let header: [u8; 4] = hex("4200bff4");
        let mut payload = [0x01];
        let tag = packet_key.encrypt_in_place(number, &header, &mut payload).unwrap();
        let mut packet = [&header[..], &payload, tag.as_ref()].concat();
        let (head, sample) = packet.split_at_mut(5);
        let (first, rest) = head.split_at_mut(1);
        header_key.encrypt_in_place(&sample[..header_key.sample_len()], &mut first[0], rest).unwrap();
        assert_eq!(packet, hex::<21>("4cfe4189655e5cd55c41f69080575d7999c25a5bfb"));

        let (head, sample) = packet.split_at_mut(5);
        let (first, rest) = head.split_at_mut(1);
        header_key.decrypt_in_place(&sample[..header_key.sample_len()], &mut first[0], rest).unwrap();
        let (head, sealed) = packet.split_at_mut(4);
        assert_eq!(head, header);
        assert_eq!(packet_key.decrypt_in_place(number, head, sealed).unwrap(), [0x01]);
        let mut forged = packet[4..].to_vec();
        assert!(packet_key.decrypt_in_place(number, &header, &mut forged).is_err(), "it is clear by now");
    }

    #[test]
    fn a_sample_of_another_length_is_refused_and_changes_nothing() {
        let key = Cipher::ChaCha20.header_protection_key(AeadKey::from([7; 32]));
        let (mut first, mut number) = (0x40, [1, 2, 3, 4]);
        assert!(key.encrypt_in_place(&[0; 15], &mut first, &mut number).is_err());
        assert_eq!((first, number), (0x40, [1, 2, 3, 4]));
    }

    #[test]
    fn every_suite_of_ours_is_thin() {
        let provider = thin(&rustls::crypto::aws_lc_rs::default_provider());
        let suites = provider.cipher_suites.iter().filter_map(SupportedCipherSuite::tls13);
        let lengths: Vec<usize> = suites
            .map(|suite| {
                assert!(SUITES.iter().any(|thin| std::ptr::eq(thin, suite)), "{suite:?}");
                suite.quic.unwrap().aead_key_len()
            })
            .collect();
        assert_eq!(lengths.iter().sum::<usize>(), 16 + 32 + 32);
    }
}
