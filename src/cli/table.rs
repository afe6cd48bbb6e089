//! Aligned text.

/// Rows of cells under a heading; columns are as wide as their widest cell, numbers
/// stand to the right.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with the heading `columns`.
    pub(super) fn new(columns: &[&str]) -> Self {
        Self {
            rows: vec![columns.iter().map(|&name| name.to_owned()).collect()],
        }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text, a line a row.
    pub(super) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let column = |place: usize| self.rows.iter().filter_map(move |row| row.get(place));
        let width = |place| column(place).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns)
            .map(|place| width(place).unwrap_or(0))
            .collect();
        let is_number =
            |cell: &String| !cell.is_empty() && cell.bytes().all(|b| b.is_ascii_digit());
        let to_right: Vec<bool> = (0..columns)
            .map(|place| self.rows.len() > 1 && column(place).skip(1).all(is_number))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &width), &to_right) in row.iter().zip(&widths).zip(&to_right) {
                let padded = if to_right {
                    format!("{cell:>width$}  ")
                } else {
                    format!("{cell:<width$}  ")
                };
                line.push_str(&padded);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stand_to_the_right() {
        let mut table = Table::new(&["NAME", "COUNT"]);
        table.row(["a".to_owned(), "5".to_owned()]);
        table.row(["longer".to_owned(), "1234567".to_owned()]);
        let expected = "NAME      COUNT\na             5\nlonger  1234567\n";
        assert_eq!(table.text(), expected);
    }
}
