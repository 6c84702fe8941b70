"""Numbers as text: as many digits as mean something, with a true minus sign."""

from __future__ import annotations

import math

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def with_error(value: float | None, error: float | None) -> str:
    """Value and error to two significant digits of the error.

    >>> with_error(-103.34912, 0.00123)
    '−103.3491 ± 0.0012'
    >>> with_error(2.5321e21, 3.17e19)
    '(2.532 ± 0.032) × 10²¹'
    >>> with_error(1.0, None)
    '1.000'
    """
    if value is None or not math.isfinite(value):
        return _not_a_number(value)
    if error is None or not math.isfinite(error) or error <= 0:
        return significant(value, 4)
    places = decimals(error)
    exponent = math.floor(math.log10(max(abs(value), error)))
    if places > 7 or (places < 0 and exponent > 5):
        scale = 10.0**exponent
        digits = max(0, decimals(error / scale))
        return f"({fixed(value / scale, digits)} ± {fixed(error / scale, digits)}) × {power(exponent)}"
    return f"{fixed(value, places)} ± {fixed(error, places)}"


def decimals(error: float) -> int:
    """Decimal places that show two significant digits of an error; negative where they are left of the point.

    >>> decimals(0.0123), decimals(0.0996), decimals(27.3), decimals(412.0)
    (3, 2, 0, -1)
    """
    if not math.isfinite(error) or error <= 0:
        return 3
    rounded = float(f"{error:.1e}")  # 0.0996 is 0.10, not 0.100
    return 1 - math.floor(math.log10(rounded) + 1e-12)


def fixed(value: float | None, places: int) -> str:
    """A number with so many decimal places; negative places round left of the point.

    >>> fixed(-0.00049, 3), fixed(1234.6, -1)
    ('0.000', '1230')
    """
    if value is None or not math.isfinite(value):
        return _not_a_number(value)
    text = f"{round(value, places):.{max(places, 0)}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def significant(value: float | None, digits: int = 3) -> str:
    """A number to so many significant digits, in powers of ten where that is shorter.

    >>> significant(0.012345), significant(-1234567.0), significant(0.0)
    ('0.0123', '−1.23 × 10⁶', '0')
    """
    if value is None or not math.isfinite(value):
        return _not_a_number(value)
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 <= exponent < 6:
        return fixed(value, digits - 1 - exponent)
    return f"{fixed(value / 10.0**exponent, digits - 1)} × {power(exponent)}"


def count(value: float | None) -> str:
    """A whole number with separators.

    >>> count(224064)
    '224,064'
    """
    return _not_a_number(value) if value is None or not math.isfinite(value) else f"{round(value):,}"


def percent(fraction: float | None) -> str:
    """A fraction in per cent.

    >>> percent(0.9132), percent(0.00123)
    ('91.3 %', '0.123 %')
    """
    return (
        _not_a_number(fraction)
        if fraction is None or not math.isfinite(fraction)
        else f"{significant(100 * fraction)} %"
    )


def probability(p: float | None) -> str:
    """A p-value: two digits, and a bound where more would be empty precision.

    >>> probability(0.2345), probability(3e-7)
    ('0.23', '< 10⁻⁴')
    """
    if p is None or not math.isfinite(p):
        return _not_a_number(p)
    return "< 10⁻⁴" if p < 1e-4 else significant(p, 2)


def duration(seconds: float | None) -> str:
    """A wall time.

    >>> duration(4.72), duration(130.1), duration(7380)
    ('4.7 s', '2 min 10 s', '2 h 3 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return _not_a_number(seconds)
    if seconds < 100:
        return f"{significant(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def power(exponent: int) -> str:
    """A power of ten.

    >>> power(-3)
    '10⁻³'
    """
    return "10" + str(exponent).translate(SUPERSCRIPT)


def _not_a_number(value: float | None) -> str:
    if value is None:
        return "–"
    if math.isnan(value):
        return "not a number"
    return "∞" if value > 0 else "−∞"
