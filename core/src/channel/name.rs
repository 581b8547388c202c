//! Sans-io: a channel's name as its table holds it.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};

use tidegate_protocol::ChannelName;

/// A name in its place in the table; only a long one is elsewhere. Besides their size, names on the heap would stand
/// between the publications that come and go there, and keep the memory of these from being given back.
#[derive(Clone)]
pub(super) struct Name(Text);

#[derive(Clone)]
enum Text {
    Here { length: u8, bytes: [u8; HERE] },
    There(Box<[u8]>),
}

impl Name {
    pub(super) fn new(name: &ChannelName) -> Self {
        let text = name.as_str().as_bytes();
        let mut bytes = [0; HERE];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(here), Ok(length)) => {
                here.copy_from_slice(text);
                Self(Text::Here { length, bytes })
            }
            _ => Self(Text::There(text.into())),
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Text::Here { length, bytes } => &bytes[..usize::from(*length)],
            Text::There(bytes) => bytes,
        }
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("made of text")
    }

    pub(super) fn channel(&self) -> ChannelName {
        ChannelName::new(self.as_str()).expect("made of a channel name")
    }
}

/// What a table is asked with, without making a [`Name`].
pub(super) fn key(name: &ChannelName) -> &[u8] {
    name.as_str().as_bytes()
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl Hash for Name {
    /// As [`key`] has it.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Bytes of text that fit where a long name needs a pointer anyway.
const HERE: usize = 22;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_is_three_words() {
        assert_eq!(size_of::<Name>(), 24);
    }

    proptest! {
        #[test]
        fn names_are_what_they_were_made_of(text in "[a-zä:]{1,60}", other in "[a-zä:]{1,60}") {
            let names = [&text, &other].map(|text| ChannelName::new(text).expect("valid"));
            let [name, different] = names.clone().map(|name| Name::new(&name));
            prop_assert_eq!(name.as_str(), &text);
            prop_assert_eq!(name.channel(), names[0].clone());
            prop_assert_eq!(name == different, text == other);
            let map = indexmap::IndexMap::from([(name, 1)]);
            prop_assert_eq!(map.get(key(&names[0])), Some(&1));
            prop_assert_eq!(map.contains_key(key(&names[1])), text == other);
        }
    }
}
