//! A module's configuration as tables: which nodes there are, and what their values may be.
//!
//! *Promises*: what a [`Type`] takes is what the module's type takes, in its canonical form;
//! a test compares with libyang.
//! *Refuses*: the rest, with a text that says what is allowed.
//! *Caller's duty*: keys and entries of leaf-lists are of types that are strings.
//! *Standard*: RFC 7950 section 9 (types), RFC 7951 (JSON), RFC 6991.

use serde_json::Value;

use crate::api::error::ErrorTag;
use crate::api::link::Address;
use crate::api::prefix::Prefix;
use crate::packet::MacAddr;

/// A module with configuration.
#[derive(Debug)]
pub struct Module {
    /// Its name.
    pub name: &'static str,
    /// Its newest revision.
    pub revision: &'static str,
    /// Its namespace.
    pub namespace: &'static str,
    /// Its text.
    pub text: &'static str,
    /// Its one top-level container. It has lists only, and each of their entries is a
    /// document.
    pub top: Node,
}

/// A data node.
#[derive(Debug)]
pub struct Node {
    /// Its name, without the module's.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
}

/// What a node is.
#[derive(Debug)]
pub enum Kind {
    /// A container without presence: empty is absent.
    Container(&'static [Node]),
    /// A list with one key.
    List(List),
    /// A leaf-list.
    LeafList(Type),
    /// A leaf.
    Leaf(Leaf),
}

/// A list.
#[derive(Debug)]
pub struct List {
    /// The key leaf's name.
    pub key: &'static str,
    /// Leaves that together differ between entries, where all are there.
    pub unique: &'static [&'static [&'static str]],
    /// The nodes of an entry.
    pub nodes: &'static [Node],
}

/// A leaf.
#[derive(Debug)]
pub struct Leaf {
    /// Its type.
    pub of: Type,
    /// Whether it must be there.
    pub is_mandatory: bool,
    /// What holds where it is not.
    pub default: Option<Literal>,
}

/// A default.
#[derive(Clone, Copy, Debug)]
pub enum Literal {
    /// Of a boolean.
    Boolean(bool),
    /// Of a number.
    Number(u32),
}

impl From<Literal> for Value {
    fn from(literal: Literal) -> Self {
        match literal {
            Literal::Boolean(value) => value.into(),
            Literal::Number(value) => value.into(),
        }
    }
}

/// The type of a leaf.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// Letters, digits, `_`, `.` and `-`, 1 to so many.
    Name(usize),
    /// Characters, 0 to so many.
    Text(usize),
    /// Where a backend is.
    Backend,
    /// `true` or `false`.
    Boolean,
    /// A number of at most 32 bits.
    Number {
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// A MAC address.
    Mac,
    /// Where a guest sees a device on its bus.
    BusPath,
    /// An address prefix.
    Prefix,
}

impl Node {
    /// A container.
    pub const fn container(name: &'static str, nodes: &'static [Self]) -> Self {
        Self {
            name,
            kind: Kind::Container(nodes),
        }
    }

    /// A list.
    pub const fn list(name: &'static str, list: List) -> Self {
        Self {
            name,
            kind: Kind::List(list),
        }
    }

    /// A leaf-list.
    pub const fn leaf_list(name: &'static str, of: Type) -> Self {
        Self {
            name,
            kind: Kind::LeafList(of),
        }
    }

    /// A leaf that may be absent.
    pub const fn leaf(name: &'static str, of: Type) -> Self {
        Self::of(name, of, false, None)
    }

    /// A leaf that must be there.
    pub const fn mandatory(name: &'static str, of: Type) -> Self {
        Self::of(name, of, true, None)
    }

    /// A leaf with a default.
    pub const fn default(name: &'static str, of: Type, default: Literal) -> Self {
        Self::of(name, of, false, Some(default))
    }

    const fn of(
        name: &'static str,
        of: Type,
        is_mandatory: bool,
        default: Option<Literal>,
    ) -> Self {
        Self {
            name,
            kind: Kind::Leaf(Leaf {
                of,
                is_mandatory,
                default,
            }),
        }
    }

    /// The nodes below.
    pub const fn nodes(&self) -> &'static [Self] {
        match &self.kind {
            Kind::Container(nodes) => nodes,
            Kind::List(list) => list.nodes,
            Kind::LeafList(_) | Kind::Leaf(_) => &[],
        }
    }

    /// The node `name` below.
    pub fn child(&self, name: &str) -> Option<&'static Self> {
        self.nodes().iter().find(|node| node.name == name)
    }

    /// Whether it has no nodes below.
    pub const fn is_leaf(&self) -> bool {
        matches!(self.kind, Kind::Leaf(_) | Kind::LeafList(_))
    }
}

impl List {
    /// The type of the key.
    pub fn key_type(&self) -> Option<Type> {
        self.nodes.iter().find_map(|node| match &node.kind {
            Kind::Leaf(leaf) if node.name == self.key => Some(leaf.of),
            _ => None,
        })
    }
}

/// Why a value is none of a type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wrong {
    pub(super) tag: ErrorTag,
    pub(super) message: String,
}

impl Type {
    /// The canonical form of `value`.
    pub(super) fn check(self, value: &Value) -> Result<Value, Wrong> {
        match self {
            Self::Boolean => match value {
                Value::Bool(_) => Ok(value.clone()),
                _ => Err(self.other_type(value)),
            },
            Self::Number { min, max } => {
                let number = value.as_number().ok_or_else(|| self.other_type(value))?;
                match number.as_u64() {
                    Some(given) if (u64::from(min)..=u64::from(max)).contains(&given) => {
                        Ok(value.clone())
                    }
                    _ => Err(self.out_of_range(&number.to_string())),
                }
            }
            _ => {
                let text = value.as_str().ok_or_else(|| self.other_type(value))?;
                self.check_text(text)
                    .map(Value::String)
                    .ok_or_else(|| self.out_of_range(text))
            }
        }
    }

    fn check_text(self, text: &str) -> Option<String> {
        let is = |sound: bool| sound.then(|| text.to_owned());
        let length = text.chars().count();
        match self {
            Self::Name(max) => {
                let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
                is((1..=max).contains(&length) && text.bytes().all(allowed))
            }
            // RFC 7950 section 9.4: no control characters but these.
            Self::Text(max) => is(length <= max && text.chars().all(is_yang_character)),
            Self::Backend => text
                .parse::<Address>()
                .ok()
                .map(|address| address.to_string()),
            Self::BusPath => is(is_bus_path(text)),
            Self::Mac => text.parse::<MacAddr>().ok().map(|mac| mac.to_string()),
            Self::Prefix => text.parse::<Prefix>().ok().map(|prefix| prefix.to_string()),
            Self::Boolean | Self::Number { .. } => None,
        }
    }

    /// What is allowed, in words.
    fn allowed(self) -> String {
        match self {
            Self::Name(max) => {
                format!("1 to {max} of the characters a-z, A-Z, 0-9, `_`, `.` and `-`")
            }
            Self::Text(max) => format!("a text of at most {max} characters"),
            Self::Backend => {
                "a socket's path from `/`, such as /run/shunt/backend.sock, or https://HOST:PORT"
                    .to_owned()
            }
            Self::Boolean => "true or false".to_owned(),
            Self::Number { min, max } => format!("a number from {min} to {max}"),
            Self::BusPath => BUS_PATH.to_owned(),
            Self::Mac => "a MAC address, such as 52:54:00:12:34:56".to_owned(),
            Self::Prefix => "an address prefix, such as 192.0.2.0/24 or 2001:db8::/32".to_owned(),
        }
    }

    fn other_type(self, value: &Value) -> Wrong {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        Wrong {
            tag: ErrorTag::BadElement,
            message: format!("this is {found}: give {}", self.allowed()),
        }
    }

    fn out_of_range(self, text: &str) -> Wrong {
        let start: String = text.chars().take(64).collect();
        Wrong {
            tag: ErrorTag::InvalidValue,
            message: format!("{start:?} is not allowed: give {}", self.allowed()),
        }
    }
}

/// What a bus path may be, in words.
pub const BUS_PATH: &str = "the device's name on its bus as the guest has it, such as 0000:00:04.0: \
                            1 to 64 of the characters a-z, A-Z, 0-9, `_`, `.`, `:` and `-`";

/// Whether that is a bus path.
pub fn is_bus_path(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

fn is_yang_character(c: char) -> bool {
    let is_noncharacter =
        matches!(u32::from(c) & 0xffff, 0xfffe | 0xffff) || ('\u{fdd0}'..='\u{fdef}').contains(&c);
    (c >= ' ' || "\t\r\n".contains(c)) && !is_noncharacter
}
