//! Sans-io: JSON spelling of what serde cannot derive: frames, payloads, enumerations.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// `Serialize` and `Deserialize` for a frame: `{"id":1,"<name>":{..}}` with one body. An unknown body is an error
/// (`refuse`) or leaves the body out (`ignore`).
///
/// Derived code would buffer the body (an untagged or flattened enum), which is slower and loses raw payloads.
macro_rules! json_frame {
    ($frame:ident, $body:ident, $unknown:ident, { $($name:literal => $variant:ident,)* }) => {
        impl serde::Serialize for $frame {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap;
                let mut map = serializer.serialize_map(None)?;
                if self.id != 0 {
                    map.serialize_entry("id", &self.id)?;
                }
                match &self.body {
                    $(Some($body::$variant(body)) => map.serialize_entry($name, body)?,)*
                    None => {}
                }
                map.end()
            }
        }

        impl<'de> serde::Deserialize<'de> for $frame {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct FrameVisitor;

                impl<'de> serde::de::Visitor<'de> for FrameVisitor {
                    type Value = $frame;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object with an id and one frame")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<$frame, A::Error> {
                        use serde::de::Error;
                        let mut id = None;
                        let mut body = None;
                        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                            match key.as_ref() {
                                "id" if id.is_some() => return Err(A::Error::duplicate_field("id")),
                                "id" => id = Some(map.next_value()?),
                                $($name if body.is_none() => {
                                    body = Some($body::$variant(map.next_value_seed(json::Object::new())?));
                                })*
                                $($name)|* => return Err(A::Error::custom("a frame has one body")),
                                other => json_frame!(@$unknown A, map, other, [$($name),*]),
                            }
                        }
                        let frame = $frame { id: id.unwrap_or_default(), body };
                        Ok(frame)
                    }
                }

                deserializer.deserialize_map(FrameVisitor)
            }
        }
    };
    (@refuse $access:ident, $map:ident, $other:ident, $names:expr) => {
        return Err($access::Error::unknown_field($other, &$names))
    };
    (@ignore $access:ident, $map:ident, $other:ident, $names:expr) => {{
        let _: &str = $other;
        $map.next_value::<serde::de::IgnoredAny>()?;
    }};
}

pub(crate) use json_frame;

/// Reads an object into `T`: derived code would also take an array of the fields in order, a second spelling that
/// no other implementation knows.
pub(crate) struct Object<T>(PhantomData<T>);

impl<T> Object<T> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Object<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// An optional object: absent, null or an [`Object`].
pub(crate) fn optional_object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Optional<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Optional<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object or null")
        }

        fn visit_none<E>(self) -> Result<Option<T>, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<T>, D::Error> {
            Object::new().deserialize(deserializer).map(Some)
        }
    }

    deserializer.deserialize_option(Optional(PhantomData))
}

/// A payload that is JSON text, carried through as it is.
pub(crate) mod raw {
    use bytes::Bytes;
    use serde::de::Error as _;
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::value::RawValue;

    pub(crate) fn serialize<S: Serializer>(value: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(json) => serde_json::from_slice::<&RawValue>(json)
                .map_err(|error| S::Error::custom(format!("the payload is no JSON: {error}")))?
                .serialize(serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        // `null` is a payload like any other.
        let raw = Box::<RawValue>::deserialize(deserializer).map_err(D::Error::custom)?;
        let text: Box<str> = raw.into();
        Ok(Some(Bytes::from(text.into_boxed_bytes())))
    }
}

/// A payload that is bytes: standard base64 with padding (RFC 4648 §4).
pub(crate) mod base64 {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(bytes) => serializer.serialize_str(&STANDARD.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        STANDARD
            .decode(text.as_bytes())
            .map(|bytes| Some(Bytes::from(bytes)))
            .map_err(|error| D::Error::custom(format!("data_base64: {error}")))
    }
}

/// A reconnect policy by its name.
pub(crate) mod policy {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::frame::ReconnectPolicy;

    pub(crate) fn serialize<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
        let policy = ReconnectPolicy::try_from(*value).unwrap_or_default();
        serializer.serialize_str(policy.name())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        // A policy of a later protocol: an unknown number in Protobuf counts as the default as well.
        Ok(ReconnectPolicy::from_name(&name).unwrap_or_default().into())
    }
}
