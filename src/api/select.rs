//! Which part of a data resource is asked for: `depth` and `fields`.
//!
//! *Promises*: what remains is the resource with nodes left out, nothing else changed.
//! *Refuses*: expressions that do not follow the grammar, that name a module this server
//! does not have, or that nest deeper than [`NESTING_MAX`].
//! *Caller's duty*: bound the query's length. List entries that lose their key stay entries.
//! *Standard*: RFC 8040 sections 4.8.2 (`depth`) and 4.8.3 (`fields`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::Value;

/// How deeply parentheses may nest: deeper than any model here.
const NESTING_MAX: usize = 16;
/// Modules whose nodes can be named.
const MODULES: [&str; 4] = [
    "shunt-inventory",
    "shunt-offload",
    "ietf-yang-library",
    "ietf-restconf-monitoring",
];

/// The wanted part of a node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Selection {
    fields: Option<Fields>,
    /// Levels wanted, this node being the first; all if absent.
    depth: Option<u16>,
}

impl Selection {
    /// Nodes that `fields` names, down to `depth` levels; all of them where absent.
    pub(super) fn new(fields: Option<Fields>, depth: Option<u16>) -> Self {
        Self { fields, depth }
    }

    /// Whether nothing is left out.
    pub(super) fn is_whole(&self) -> bool {
        *self == Self::default()
    }

    /// What is wanted of the child `name`, with or without its module's name; `None`: nothing.
    pub(super) fn child(&self, name: &str) -> Option<Self> {
        let depth = match self.depth {
            Some(levels) if levels <= 1 => return None,
            depth => depth.map(|levels| levels - 1),
        };
        let fields = match &self.fields {
            None => None,
            Some(fields) => {
                let of_child = fields.0.get(local(name))?;
                (!of_child.is_whole()).then(|| of_child.clone())
            }
        };
        Some(Self { fields, depth })
    }

    /// Leaves out of a node's `value` what is not wanted.
    pub(super) fn apply(&self, value: Value) -> Value {
        if self.is_whole() {
            return value;
        }
        match value {
            Value::Object(children) => children
                .into_iter()
                .filter_map(|(name, value)| {
                    let value = self.child(&name)?.apply(value);
                    Some((name, value))
                })
                .collect(),
            // A list and its entries are one level.
            Value::Array(entries) => entries.into_iter().map(|entry| self.apply(entry)).collect(),
            leaf => leaf,
        }
    }
}

/// The nodes that a `fields` expression names, by local name; without children: all below.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Fields(BTreeMap<String, Fields>);

impl Fields {
    /// Reads an expression such as `element(name;ports/vnic)`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser {
            text,
            at: 0,
            nesting: 0,
        };
        let fields = parser.expression()?;
        match parser.peek() {
            None => Ok(fields),
            Some(_) => Err(parser.unexpected()),
        }
    }

    fn is_whole(&self) -> bool {
        self.0.is_empty()
    }

    /// A chain of nodes with `end` below.
    fn chain(path: &[&str], end: Self) -> Self {
        match path {
            [] => end,
            [first, rest @ ..] => {
                let below = Self::chain(rest, end);
                Self(BTreeMap::from([((*first).to_owned(), below)]))
            }
        }
    }

    /// Adds what is at the end of `path`; a node that is wanted whole stays so.
    fn add(&mut self, path: &[&str], end: Self) {
        let [first, rest @ ..] = path else {
            return;
        };
        match self.0.entry((*first).to_owned()) {
            Entry::Vacant(place) => {
                place.insert(Self::chain(rest, end));
            }
            Entry::Occupied(place) => {
                let node = place.into_mut();
                match (node.is_whole(), rest.is_empty(), end.is_whole()) {
                    (true, _, _) => {}
                    (false, false, _) => node.add(rest, end),
                    (false, true, true) => *node = end,
                    (false, true, false) => {
                        for (name, below) in end.0 {
                            node.add(&[&name], below);
                        }
                    }
                }
            }
        }
    }
}

/// A name without its module's.
fn local(name: &str) -> &str {
    name.split_once(':').map_or(name, |(_, local)| local)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    nesting: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn unexpected(&self) -> String {
        match self.text[self.at..].chars().next() {
            Some(found) => format!("`{found}` at character {} of `fields`", self.at + 1),
            None => "`fields` ends too early".to_owned(),
        }
    }

    fn expression(&mut self) -> Result<Fields, String> {
        let mut fields = Fields::default();
        loop {
            let mut path = vec![self.name()?];
            while self.eat(b'/') {
                path.push(self.name()?);
            }
            let below = if self.eat(b'(') {
                self.in_parentheses()?
            } else {
                Fields::default()
            };
            fields.add(&path, below);
            if !self.eat(b';') {
                return Ok(fields);
            }
        }
    }

    fn in_parentheses(&mut self) -> Result<Fields, String> {
        self.nesting += 1;
        if self.nesting > NESTING_MAX {
            return Err(format!(
                "`fields` nests deeper than {NESTING_MAX} parentheses"
            ));
        }
        let below = self.expression()?;
        self.nesting -= 1;
        if self.eat(b')') {
            Ok(below)
        } else {
            Err(self.unexpected())
        }
    }

    /// An identifier, after its module's name and a colon or without.
    fn name(&mut self) -> Result<&'a str, String> {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        let rest = &self.text[self.at..];
        let end = rest.bytes().position(|byte| !is_part(byte));
        let name = &rest[..end.unwrap_or(rest.len())];
        if let Some((module, _)) = name.split_once(':')
            && !MODULES.contains(&module)
        {
            return Err(format!(
                "`fields` names a module `{module}` that is not here"
            ));
        }
        let identifier = local(name);
        let begins_well = identifier
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        if !begins_well || identifier.contains(':') {
            return Err(self.unexpected());
        }
        self.at += name.len();
        Ok(identifier)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn data() -> Value {
        json!({
            "name": "r1",
            "ports": { "vnic": [
                { "name": "lan", "guest": { "kind": "vhost-user", "queue": [{ "queue": 0 }] } },
                { "name": "wan", "guest": { "kind": "vhost-user", "queue": [] } }
            ]},
            "statistics": { "parked": "0", "table": { "sessions": 3 } }
        })
    }

    fn fields(text: &str) -> Value {
        Selection::new(Some(Fields::parse(text).unwrap()), None).apply(data())
    }

    fn depth(levels: u16) -> Value {
        Selection::new(None, Some(levels)).apply(data())
    }

    #[test]
    fn fields_leave_what_they_name_and_all_below_it() {
        assert_eq!(fields("name"), json!({ "name": "r1" }));
        assert_eq!(
            fields("ports/vnic(name;guest/kind)"),
            json!({ "ports": { "vnic": [
                { "name": "lan", "guest": { "kind": "vhost-user" } },
                { "name": "wan", "guest": { "kind": "vhost-user" } }
            ]}})
        );
        assert_eq!(
            fields("name;statistics(table)"),
            json!({ "name": "r1", "statistics": { "table": { "sessions": 3 } } })
        );
        assert_eq!(fields("nothing/of/this"), json!({}));
        assert_eq!(fields("shunt-offload:name"), json!({ "name": "r1" }));
    }

    #[test]
    fn fields_named_twice_are_the_union_in_any_order() {
        let both = json!({ "statistics": { "parked": "0", "table": { "sessions": 3 } } });
        for text in [
            "statistics/parked;statistics/table",
            "statistics(parked;table/sessions)",
            "statistics;statistics/parked",
            "statistics/parked;statistics",
            "statistics/parked;statistics(table;parked)",
        ] {
            assert_eq!(fields(text), both, "{text}");
        }
    }

    #[test]
    fn depth_counts_the_resource_itself_and_leaves_as_levels() {
        assert_eq!(depth(1), json!({}));
        assert_eq!(
            depth(2),
            json!({ "name": "r1", "ports": {}, "statistics": {} })
        );
        assert_eq!(
            depth(3),
            json!({
                "name": "r1", "ports": { "vnic": [{}, {}] },
                "statistics": { "parked": "0", "table": {} }
            })
        );
        assert_eq!(depth(65_535), data());
    }

    #[test]
    fn an_expression_outside_the_grammar_is_refused() {
        let nested = format!("{}a{}", "a(".repeat(17), ")".repeat(17));
        for text in [
            "",
            ";",
            "a;",
            "a(",
            "a()",
            "a(b",
            "a)",
            "a(b))",
            "a//b",
            "/a",
            "a/",
            "a(b)c",
            "1a",
            "a b",
            "a:b:c",
            "other:a",
            "ietf-yang-library:",
            ":a",
            "\u{e4}",
            &nested,
        ] {
            assert!(Fields::parse(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_expression_breaks_the_parser(text in "[a-c:;/()\u{e4}]{0,40}") {
            let _ = Fields::parse(&text);
        }
    }
}
