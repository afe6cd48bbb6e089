//! Which request targets pass: those that can be read in one way only.
//!
//! *Promises*: a path that [`is_canonical`] is the same resource to everybody, whether they
//! decode it before or after they split it.
//! *Refuses*: dot segments, empty segments, path parameters on dots, encoded slashes,
//! dots and percent signs, encodings of characters that need none.
//! *Caller's duty*: paths are compared with prefixes byte by byte, as they came.
//! *Standard*: RFC 3986 sections 2.3, 3.3, 3.4 and 6.2.2.

/// Longest path and query, bytes.
pub const TARGET_MAX: usize = 4_096;

/// Whether `path` is absolute and canonical.
pub fn is_canonical(path: &str) -> bool {
    let Some(segments) = path.strip_prefix('/') else {
        return false;
    };
    if path.len() > TARGET_MAX || !is_encoded(path, |byte| is_pchar(byte) || byte == b'/') {
        return false;
    }
    // The last segment may be empty: a slash at the end.
    let (inner, last) = match segments.rsplit_once('/') {
        Some((inner, last)) => (Some(inner), last),
        None => (None, segments),
    };
    inner.is_none_or(|inner| {
        inner
            .split('/')
            .all(|segment| !segment.is_empty() && !is_dots(segment))
    }) && !is_dots(last)
}

/// Whether `query` has nothing but what a query may have.
pub fn is_query(query: &str) -> bool {
    let allowed = |byte| is_pchar(byte) || byte == b'/' || byte == b'?';
    query.len() <= TARGET_MAX && query.bytes().all(|byte| allowed(byte) || byte == b'%')
}

/// `.` or `..`, also with parameters behind, which some servers cut off.
fn is_dots(segment: &str) -> bool {
    let name = segment.split(';').next().unwrap_or_default();
    matches!(name, "." | "..")
}

/// Whether `text` is made of allowed bytes and of encodings that could not be left out
/// and hide nothing.
fn is_encoded(text: &str, is_allowed: impl Fn(u8) -> bool) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = (bytes.next(), bytes.next());
            let (Some(high), Some(low)) = (digits.0.and_then(digit), digits.1.and_then(digit))
            else {
                return false;
            };
            let decoded = high << 4 | low;
            let hides = matches!(decoded, b'/' | b'\\' | b'%') || decoded.is_ascii_control();
            if hides || is_unreserved(decoded) {
                return false;
            }
        } else if !is_allowed(byte) {
            return false;
        }
    }
    true
}

/// An upper-case hexadecimal digit (RFC 3986 section 2.1).
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn is_pchar(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    #[test]
    fn ordinary_paths_pass() {
        for path in [
            "/",
            "/restconf",
            "/restconf/",
            "/restconf/operations/shunt-offload:offload",
            "/restconf/data/a:b/list=x,y/leaf",
            "/list=a%20b%3A%C3%A4",
            "/.well-known/host-meta",
            "/a..b/...",
        ] {
            assert!(is_canonical(path), "{path}");
        }
    }

    #[test]
    fn paths_that_can_be_read_in_two_ways_do_not() {
        for path in [
            "",
            "restconf",
            "*",
            "//restconf",
            "/restconf//data",
            "/restconf/../data",
            "/restconf/..",
            "/restconf/.",
            "/./restconf",
            "/restconf/..;x=1/data",
            "/restconf/.;/data",
            "/restconf/%2E%2E/data",
            "/restconf/%2e%2e/data",
            "/restconf/..%2Fdata",
            "/restconf%2Fdata",
            "/restconf%5Cdata",
            "/restconf\\data",
            "/a%252Fb",
            "/a%00b",
            "/a%0D%0Ab",
            "/a%41",
            "/a%c3%a4",
            "/a%4",
            "/a%",
            "/a%zz",
            "/a b",
            "/ä",
            "/a#b",
            "/a?b",
        ] {
            assert!(!is_canonical(path), "{path}");
        }
        assert!(!is_canonical(&format!("/{}", "a".repeat(TARGET_MAX))));
    }

    #[test]
    fn queries_have_no_controls_and_no_fragments() {
        assert!(is_query("depth=1&fields=a/b(c;d)?%2F"));
        for query in ["a#b", "a b", "a\nb", "ä", "\u{7f}"] {
            assert!(!is_query(query), "{query:?}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_stays_the_same_path_when_decoded_and_split_again(
            path in "/([a-c./%;]|%2[0-9A-Fa-f]|%5C|\\.\\.){0,12}"
        ) {
            if !is_canonical(&path) {
                return Ok(());
            }
            let decoded = percent_encoding::percent_decode_str(&path).collect::<Vec<u8>>();
            let segments = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'/').count();
            prop_assert_eq!(segments(&decoded), segments(path.as_bytes()));
            let decoded = String::from_utf8_lossy(&decoded).into_owned();
            prop_assert!(decoded.split('/').all(|segment| segment != ".." && segment != "."));
            prop_assert!(!decoded.contains("//"));
        }
    }
}
