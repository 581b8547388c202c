//! Sans-io: parts of an address: query parameters and path segments.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// A parameter or segment that is not UTF-8 once decoded, or whose escapes are malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed percent-encoding in the address")]
pub struct BadQuery;

/// Name and value of each parameter, as HTML forms encode them: `+` is a space.
pub fn query_pairs(
    query: Option<&str>,
) -> impl Iterator<Item = Result<(Cow<'_, str>, Cow<'_, str>), BadQuery>> {
    query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decode_form(name)?, decode_form(value)?))
    })
}

/// One path segment; `+` stands for itself.
///
/// # Errors
/// Where it is malformed.
pub fn decode_path_segment(segment: &str) -> Result<Cow<'_, str>, BadQuery> {
    if !escapes_are_whole(segment) {
        return Err(BadQuery);
    }
    percent_decode_str(segment).decode_utf8().map_err(|_| BadQuery)
}

fn decode_form(text: &str) -> Result<Cow<'_, str>, BadQuery> {
    if text.contains('+') {
        return decode_path_segment(&text.replace('+', " ")).map(|text| Cow::Owned(text.into_owned()));
    }
    decode_path_segment(text)
}

fn escapes_are_whole(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| {
        rest.as_bytes().first_chunk::<2>().is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameters_are_decoded_and_malformed_ones_told() {
        let pairs: Vec<_> = query_pairs(Some("a=1&&b=x%20y+z&flag&c=%e2%82%ac&=")).collect();
        let expected = [("a", "1"), ("b", "x y z"), ("flag", ""), ("c", "€"), ("", "")];
        assert_eq!(pairs.len(), expected.len());
        for (pair, (name, value)) in pairs.into_iter().zip(expected) {
            assert_eq!(pair, Ok((Cow::Borrowed(name), Cow::Borrowed(value))));
        }
        assert_eq!(query_pairs(None).count(), 0);
        for bad in ["a=%", "a=%2", "a=%zz", "%=1", "a=%ff", "a=+%+1"] {
            assert_eq!(query_pairs(Some(bad)).next(), Some(Err(BadQuery)), "{bad}");
        }
        assert_eq!(decode_path_segment("room%3A1+2").as_deref(), Ok("room:1+2"));
    }

    proptest! {
        #[test]
        fn arbitrary_queries_never_panic(query in ".{0,200}") {
            prop_assert!(query_pairs(Some(&query)).count() <= query.len() + 1);
        }
    }
}
