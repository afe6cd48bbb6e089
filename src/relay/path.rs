//! Which request targets pass: those that can be read in one way only.
//!
//! *Promises*: a path that [`is_canonical`] lies below the same prefixes to everybody, whether
//! they decode it before or after they split it.
//! *Refuses*: dot segments and empty segments, also with parameters or what would begin a
//! query behind; encoded dots and percent signs, encodings of characters that need none, and
//! encoded slashes but in the value of a key.
//! *Caller's duty*: paths are compared with prefixes byte by byte, as they came.
//! *Standard*: RFC 3986 sections 2.3, 3.3, 3.4 and 6.2.2; RFC 8040 section 3.5.3.
//!
//! Values of keys have slashes (`interface=eth0%2F1`, `prefix=10.0.0.0%2F8`; RFC 8040 wants them
//! encoded). A reader that decodes before it splits sees more segments then. What makes that
//! safe: each piece of the value is judged as if it were a segment, so none of them is empty or
//! climbs, and such a reader goes down from where the key stands, never up. A prefix ends where a
//! plain slash or the path does, so what the relay finds below one, every reader does. (That it
//! finds another resource there than was meant is its own fault.) Elsewhere than behind a `=`
//! an encoded slash has no use, and does not pass.

use percent_encoding::percent_decode_str;

/// Longest path and query, bytes.
pub const TARGET_MAX: usize = 4_096;

/// Whether `path` is absolute and canonical.
pub fn is_canonical(path: &str) -> bool {
    let Some(segments) = path.strip_prefix('/') else {
        return false;
    };
    if path.len() > TARGET_MAX {
        return false;
    }
    // The last segment may be empty: a slash at the end.
    let segments = segments.strip_suffix('/').unwrap_or(segments);
    path == "/" || segments.split('/').all(is_segment)
}

fn is_segment(segment: &str) -> bool {
    let mut pieces = segment.split("%2F");
    let first = pieces.next().unwrap_or_default();
    let mut values = pieces.peekable();
    is_encoded(segment)
        && is_step(first)
        && (values.peek().is_none() || first.contains('='))
        && values.all(is_step)
}

/// Whether a segment leads from where it stands to one below, also to servers that cut off
/// parameters, or what would be a query or a fragment if it were not encoded.
fn is_step(segment: &str) -> bool {
    let decoded: Vec<u8> = percent_decode_str(segment).collect();
    let name = decoded.split(|byte| b";?#".contains(byte)).next();
    !matches!(name.unwrap_or_default(), b"" | b"." | b"..")
}

/// Whether `query` has nothing but what a query may have.
pub fn is_query(query: &str) -> bool {
    let allowed = |byte| is_pchar(byte) || byte == b'/' || byte == b'?';
    query.len() <= TARGET_MAX && query.bytes().all(|byte| allowed(byte) || byte == b'%')
}

/// Whether a segment is made of allowed bytes and of encodings that could not be left out
/// and hide nothing but slashes.
fn is_encoded(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = (bytes.next(), bytes.next());
            let (Some(high), Some(low)) = (digits.0.and_then(digit), digits.1.and_then(digit))
            else {
                return false;
            };
            let decoded = high << 4 | low;
            let hides = matches!(decoded, b'\\' | b'%') || decoded.is_ascii_control();
            if hides || is_unreserved(decoded) {
                return false;
            }
        } else if !is_pchar(byte) {
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
            "/restconf/data/a:b/interface=eth0%2F1,x/leaf",
            "/prefix=2001:db8::%2F32",
            "/socket=%2Frun%2Fshunt%2Fa.sock",
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
            "/restconf/..%3Bx/data",
            "/restconf/..%3Fx",
            "/restconf/..%23",
            "/restconf/;x/data",
            "/restconf/%2E%2E/data",
            "/restconf/%2e%2e/data",
            "/restconf/..%2Fdata",
            "/restconf%2Fdata",
            "/restconf%2Fdata=1",
            "/restconf%2F..=1",
            "/a=1%2F..",
            "/a=1%2F..%2F..%2F..%2Fmetrics",
            "/a=1%2F.%2Fb",
            "/a=..%2F..;x%2Fb",
            "/a=1%2F%2E%2E%2Fb",
            "/a=1%2f2",
            "/a=1%252F2",
            "/a=1%2F",
            "/a=1%2F/b",
            "/a=1%2F%2Fb",
            "/a=1%5C..%5Cb",
            "/..%2Fa=1",
            "/%2Fa=1",
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

    /// The path as one sees it who decodes before he splits, and takes what climbs and what is
    /// empty away.
    fn decoded_first(path: &str) -> String {
        let decoded: Vec<u8> = percent_decode_str(path).collect();
        let decoded = String::from_utf8_lossy(&decoded).replace('\\', "/");
        let decoded = decoded.split(['?', '#']).next().unwrap_or_default();
        let mut segments = Vec::new();
        for segment in decoded.split('/') {
            match segment.split(';').next().unwrap_or_default() {
                "" | "." => {}
                ".." => drop(segments.pop()),
                _ => segments.push(segment),
            }
        }
        format!("/{}", segments.join("/"))
    }

    proptest! {
        #[test]
        fn what_passes_lies_below_the_same_prefixes_to_who_decodes_it_first(
            path in "/([a-c./%;=]|%2[0-9A-Fa-f]|%3[BF]|%5C|=1%2F|\\.\\.){0,12}"
        ) {
            if !is_canonical(&path) {
                return Ok(());
            }
            let seen = decoded_first(&path);
            let slashes = path.match_indices('/').map(|(at, _)| at);
            for prefix in slashes.chain([path.len()]).map(|end| &path[..end]) {
                // What a prefix in a configuration may be, and reads the same to both.
                if prefix.is_empty() || prefix.ends_with('/') || prefix.contains('%') {
                    continue;
                }
                let rest = seen.strip_prefix(prefix);
                prop_assert!(
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
                    "{} is seen as {}, not below {}", path, seen, prefix
                );
            }
        }
    }
}
