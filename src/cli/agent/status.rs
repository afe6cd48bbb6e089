//! The agent's status for people: whatever it tells, as aligned text.

use serde_json::{Map, Value};

use crate::cli::table::Table;

/// Numbers and words first, then a section for each part, lists of objects as tables.
pub(super) fn text(status: &Value) -> String {
    let mut text = String::new();
    match status {
        Value::Object(members) => section("", members, &mut text),
        other => text.push_str(&word(other)),
    }
    text
}

fn section(title: &str, members: &Map<String, Value>, text: &mut String) {
    let plain: Vec<_> = members
        .iter()
        .filter(|(_, value)| !is_part(value))
        .map(|(name, value)| (name, word(value)))
        .collect();
    if !title.is_empty() && (!plain.is_empty() || members.is_empty()) {
        text.push_str(&format!("\n{title}\n"));
    }
    let width = plain.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let indent = if title.is_empty() { "" } else { "  " };
    for (name, value) in plain {
        text.push_str(format!("{indent}{name:width$}  {value}").trim_end());
        text.push('\n');
    }
    for (name, value) in members.iter().filter(|(_, value)| is_part(value)) {
        let title = match title.is_empty() {
            true => name.clone(),
            false => format!("{title} {name}"),
        };
        match value {
            Value::Object(members) => section(&title, members, text),
            Value::Array(rows) => table(&title, rows, text),
            _ => {}
        }
    }
}

/// Whether a value has lines of its own.
fn is_part(value: &Value) -> bool {
    match value {
        Value::Object(_) => true,
        Value::Array(rows) => rows.iter().any(Value::is_object),
        _ => false,
    }
}

fn table(title: &str, rows: &[Value], text: &mut String) {
    let rows: Vec<_> = rows.iter().filter_map(Value::as_object).collect();
    let mut columns: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(|row| row.keys()) {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let headings: Vec<String> = columns.iter().map(|name| name.to_uppercase()).collect();
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut table = Table::new(&headings);
    for row in rows {
        table.row(
            columns
                .iter()
                .map(|name| row.get(*name).map_or("-".to_owned(), word)),
        );
    }
    text.push_str(&format!("\n{title}\n"));
    for line in table.text().lines() {
        text.push_str(&format!("  {line}\n"));
    }
}

/// A value in a line.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(all) if all.is_empty() => "-".to_owned(),
        Value::Array(all) => all.iter().map(word).collect::<Vec<_>>().join(", "),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| format!("{name} {}", word(value)))
            .collect::<Vec<_>>()
            .join(", "),
        Value::Number(number) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_have_sections_and_lists_are_tables() {
        let status = json!({
            "version": "1",
            "channel": { "connected": true, "trouble": null, "deep": { "a": 1 } },
            "interfaces": [
                { "name": "eth0", "vnic": "lan", "count": 5 },
                { "name": "eth1", "count": 1234, "why": ["shaped", "down"] },
            ],
        });
        let expected = "\
version  1

channel
  connected  yes
  trouble    -

channel deep
  a  1

interfaces
  COUNT  NAME  VNIC  WHY
      5  eth0  lan   -
   1234  eth1  -     shaped, down
";
        assert_eq!(text(&status), expected);
    }
}
