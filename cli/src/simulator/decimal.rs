//! Amounts as decimal strings, for PSPs that write major units.

/// "49.99" of 4999 EUR, "500" of 500 JPY, "0.500" of 500 KWD.
pub(super) fn decimal(minor: i64, currency: &str) -> String {
    let digits = match currency {
        "BIF" | "CLP" | "DJF" | "GNF" | "ISK" | "JPY" | "KMF" | "KRW" | "PYG" | "RWF" | "UGX" | "VND" | "VUV" | "XAF" | "XOF"
        | "XPF" => 0,
        "BHD" | "IQD" | "JOD" | "KWD" | "LYD" | "OMR" | "TND" => 3,
        _ => 2,
    };
    let (sign, text) = (if minor < 0 { "-" } else { "" }, format!("{:0>width$}", minor.unsigned_abs(), width = digits + 1));
    let (major, fraction) = text.split_at(text.len() - digits);
    if digits == 0 { format!("{sign}{major}") } else { format!("{sign}{major}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_units_have_as_many_digits_as_the_currency() {
        let cases =
            [(4999, "EUR", "49.99"), (5, "EUR", "0.05"), (-1000, "EUR", "-10.00"), (500, "JPY", "500"), (500, "KWD", "0.500")];
        for (minor, currency, expected) in cases {
            assert_eq!(decimal(minor, currency), expected, "{minor} {currency}");
        }
    }
}
