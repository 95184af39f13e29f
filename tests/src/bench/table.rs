//! What was measured, as rows of ratios. Pure.

use std::fmt;

/// Median, lowest and highest of several figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The one in the middle, or the mean of the two there.
    pub median: f64,
    /// The lowest.
    pub least: f64,
    /// The highest.
    pub most: f64,
}

impl Spread {
    /// Returns that of `figures`; of none it is not a number.
    pub fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
        let (half, last) = (sorted.len() / 2, sorted.len().saturating_sub(1));
        let median = match sorted.len() % 2 {
            1 => at(half),
            _ => f64::midpoint(at(half.saturating_sub(1)), at(half)),
        };
        Self {
            median,
            least: at(0),
            most: at(last),
        }
    }
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes; shown in millions.
    Bytes,
    /// Bytes in a second; shown in millions.
    BytesPerSecond,
    /// Operations in a second.
    PerSecond,
    /// Times to the server and back.
    RoundTrips,
}

impl Unit {
    fn show(self, figure: f64) -> String {
        let (figure, name) = match self {
            Self::Seconds => (figure, "s"),
            Self::Bytes => (figure / 1e6, "MB"),
            Self::BytesPerSecond => (figure / 1e6, "MB/s"),
            Self::PerSecond => (figure, "/s"),
            Self::RoundTrips => (figure, "RTT"),
        };
        format!("{} {name}", digits(figure))
    }
}

/// Three digits, or all before the point.
fn digits(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        size if size >= 0.01 || size == 0.0 => format!("{figure:.2}"),
        _ => format!("{figure:.4}"),
    }
}

/// The figures of one subject, one for each turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Who.
    pub name: String,
    /// What, in the order of the turns.
    pub figures: Vec<f64>,
}

impl Series {
    /// Names figures.
    pub fn new(name: impl Into<String>, figures: impl IntoIterator<Item = f64>) -> Self {
        Self {
            name: name.into(),
            figures: figures.into_iter().collect(),
        }
    }
}

/// Two subjects of the same turns, and the ratio between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where: the line, or what was done.
    pub place: String,
    /// What the figures count.
    pub unit: Unit,
    /// Ours.
    pub ours: Series,
    /// What it is compared with.
    pub other: Series,
    /// What the ratio has to be at most, or at least; `None`: it is only told.
    pub mark: Option<Mark>,
}

/// What a ratio has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mark {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {}", digits(*most)),
            Self::AtLeast(least) => write!(f, "≥ {}", digits(*least)),
        }
    }
}

impl Row {
    /// Compares two subjects.
    pub fn new(place: impl Into<String>, unit: Unit, ours: Series, other: Series) -> Self {
        Self {
            place: place.into(),
            unit,
            ours,
            other,
            mark: None,
        }
    }

    /// Says what the ratio has to be.
    #[must_use]
    pub fn marked(self, mark: Mark) -> Self {
        Self {
            mark: Some(mark),
            ..self
        }
    }

    /// Returns ours by the other's, turn by turn, as far as both took one.
    pub fn ratio(&self) -> Spread {
        let pairs = self.ours.figures.iter().zip(&self.other.figures);
        Spread::of(&pairs.map(|(ours, other)| ours / other).collect::<Vec<_>>())
    }

    /// Returns how often the subject that took most turns took one.
    fn turns(&self) -> usize {
        self.ours.figures.len().max(self.other.figures.len())
    }

    /// Returns whether the median of the ratio is as it has to be.
    pub fn meets(&self) -> Option<bool> {
        let median = self.ratio().median;
        self.mark.map(|mark| match mark {
            Mark::AtMost(most) => median <= most,
            Mark::AtLeast(least) => median >= least,
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |series: &Series| {
            let Spread {
                median,
                least,
                most,
            } = Spread::of(&series.figures);
            let (least, most) = (self.unit.show(least), self.unit.show(most));
            let turns = match series.figures.len() {
                turns if turns < self.turns() => format!(", {turns} turns"),
                _ => String::new(),
            };
            format!(
                "{}{turns} | {} ({least}..{most})",
                series.name,
                self.unit.show(median)
            )
        };
        let ratio = self.ratio();
        let mark = match (self.mark, self.meets()) {
            (Some(mark), Some(true)) => format!("{mark}: yes"),
            (Some(mark), _) => format!("{mark}: **no**"),
            (None, _) => String::new(),
        };
        write!(
            f,
            "| {} | {} | {} | **{}** ({}..{}) | {mark} |",
            self.place,
            side(&self.ours),
            side(&self.other),
            digits(ratio.median),
            digits(ratio.least),
            digits(ratio.most),
        )
    }
}

/// What stands above rows.
pub const HEAD: &str = "\
| where | ours | median (least..most) | beside | median (least..most) | ours ÷ beside | mark |
| --- | --- | --- | --- | --- | --- | --- |";

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::{prop_assert, proptest};

    use super::{HEAD, Mark, Row, Series, Spread, Unit};

    proptest! {
        /// The median lies between the lowest and the highest, in whatever order the figures come.
        #[test]
        fn the_median_is_in_the_middle(mut figures in vec(0.0..1e6_f64, 1..9)) {
            let spread = Spread::of(&figures);
            prop_assert!(spread.least <= spread.median && spread.median <= spread.most);
            figures.reverse();
            prop_assert!(Spread::of(&figures) == spread);
        }
    }

    fn row() -> Row {
        let ours = Series::new("ours", [2.0, 1.0, 3.0]);
        let other = Series::new("theirs", [4.0, 4.0, 4.0]);
        Row::new("here", Unit::Seconds, ours, other)
    }

    #[test]
    fn a_ratio_is_that_of_each_turn() {
        let ratio = row().ratio();
        assert_eq!((ratio.median, ratio.least, ratio.most), (0.5, 0.25, 0.75));
        assert_eq!(row().marked(Mark::AtMost(0.4)).meets(), Some(false));
        assert_eq!(row().marked(Mark::AtLeast(0.4)).meets(), Some(true));
    }

    #[test]
    fn a_row_has_as_many_cells_as_its_head() {
        let line = row().marked(Mark::AtMost(1.3)).to_string();
        let cells = HEAD.lines().next().unwrap().matches('|').count();
        assert_eq!(line.matches('|').count(), cells, "{line}");
        assert!(
            line.contains("2.00 s (1.00 s..3.00 s)") && line.contains("≤ 1.30: yes"),
            "{line}"
        );
    }

    #[test]
    fn whoever_took_fewer_turns_is_told_of() {
        let mut row = row();
        row.other.figures.pop();
        assert!(row.to_string().contains("theirs, 2 turns |"), "{row}");
        assert!(!row.to_string().contains("ours, "), "{row}");
        assert_eq!(row.ratio().median, 0.375);
    }
}
