"""The easy band: one to three lines over a small vocabulary.

Each entry: name, statement, reference, generator of inputs.
"""

from envs.code.problems.inputs import decimal, lines, mirrored, numbers, row, whole, word, words

_N = whole(-60, 60)
_POSITIVE = whole(1, 60)
_TWO = row(whole(-40, 40), whole(-40, 40))
_TWO_POSITIVE = row(whole(1, 90), whole(1, 12))
_LIST = numbers(1, 8, -20, 20)
_WORD = word(1, 9)
_WORDS = words(1, 6)

_READ_N = "n = int(input())\n"
_READ_TWO = "a, b = map(int, input().split())\n"
_READ_LIST = "xs = list(map(int, input().split()))\n"
_READ_WORD = "s = input()\n"
_READ_WORDS = "ws = input().split()\n"

PROBLEMS = (
    ("double", "Read a number n. Print n times 2.", _READ_N + "print(n * 2)", _N),
    ("plus-seven", "Read a number n. Print n plus 7.", _READ_N + "print(n + 7)", _N),
    ("minus-three", "Read a number n. Print n minus 3.", _READ_N + "print(n - 3)", _N),
    ("square", "Read a number n. Print n times n.", _READ_N + "print(n * n)", _N),
    ("negate", "Read a number n. Print it with the other sign.", _READ_N + "print(-n)", _N),
    ("size-of-number", "Read a number n. Print how far it is from 0.", _READ_N + "print(abs(n))",
     _N),
    ("half", "Read a number n. Print half of it, rounded down.", _READ_N + "print(n // 2)", _N),
    ("last-digit", "Read a number n, at least 0. Print its last digit.",
     _READ_N + "print(n % 10)", whole(0, 9999)),
    ("rest-of-three", "Read a number n, at least 0. Print the rest of n divided by 3.",
     _READ_N + "print(n % 3)", whole(0, 200)),
    ("triple-plus-one", "Read a number n. Print 3 times n, plus 1.",
     _READ_N + "print(n * 3 + 1)", _N),
    ("next-and-before", "Read a number n. Print n minus 1 and n plus 1.",
     _READ_N + "print(n - 1, n + 1)", _N),
    ("even-or-odd", "Read a number n. Print even if 2 divides it, else odd.",
     _READ_N + 'print("even" if n % 2 == 0 else "odd")', _N),
    ("sign", "Read a number n. Print 1 if it is above 0, -1 if below, else 0.",
     _READ_N + "print((n > 0) - (n < 0))", whole(-6, 6)),
    ("at-least-zero", "Read a number n. Print n, or 0 if n is below 0.",
     _READ_N + "print(max(n, 0))", _N),
    ("add", "Read two numbers a and b. Print a plus b.", _READ_TWO + "print(a + b)", _TWO),
    ("subtract", "Read two numbers a and b. Print a minus b.", _READ_TWO + "print(a - b)", _TWO),
    ("multiply", "Read two numbers a and b. Print a times b.", _READ_TWO + "print(a * b)", _TWO),
    ("larger", "Read two numbers a and b. Print the larger one.", _READ_TWO + "print(max(a, b))",
     _TWO),
    ("smaller", "Read two numbers a and b. Print the smaller one.",
     _READ_TWO + "print(min(a, b))", _TWO),
    ("swap", "Read two numbers a and b. Print b and then a.", _READ_TWO + "print(b, a)", _TWO),
    ("distance", "Read two numbers a and b. Print how far apart they are.",
     _READ_TWO + "print(abs(a - b))", _TWO),
    ("whole-quotient", "Read two numbers a and b. Print a divided by b, rounded down.",
     _READ_TWO + "print(a // b)", _TWO_POSITIVE),
    ("rest", "Read two numbers a and b. Print the rest of a divided by b.",
     _READ_TWO + "print(a % b)", _TWO_POSITIVE),
    ("rectangle", "Read the two sides a and b of a rectangle. Print the sum of its four sides.",
     _READ_TWO + "print(2 * (a + b))", row(_POSITIVE, _POSITIVE)),
    ("divides", "Read two numbers a and b. Print yes if b divides a, else no.",
     _READ_TWO + 'print("yes" if a % b == 0 else "no")', row(whole(1, 40), whole(1, 4))),
    ("mean-of-two", "Read two numbers a and b. Print their mean.",
     _READ_TWO + "print((a + b) / 2)", _TWO),
    ("sum-list", "Read numbers on one line. Print their sum.", _READ_LIST + "print(sum(xs))",
     _LIST),
    ("largest", "Read numbers on one line. Print the largest.", _READ_LIST + "print(max(xs))",
     _LIST),
    ("smallest", "Read numbers on one line. Print the smallest.", _READ_LIST + "print(min(xs))",
     _LIST),
    ("how-many", "Read numbers on one line. Print how many there are.",
     _READ_LIST + "print(len(xs))", _LIST),
    ("first-number", "Read numbers on one line. Print the first.", _READ_LIST + "print(xs[0])",
     _LIST),
    ("last-number", "Read numbers on one line. Print the last.", _READ_LIST + "print(xs[-1])",
     _LIST),
    ("sort-up", "Read numbers on one line. Print them from small to large.",
     _READ_LIST + "print(*sorted(xs))", _LIST),
    ("backwards", "Read numbers on one line. Print them from the last to the first.",
     _READ_LIST + "print(*xs[::-1])", _LIST),
    ("spread", "Read numbers on one line. Print the largest minus the smallest.",
     _READ_LIST + "print(max(xs) - min(xs))", _LIST),
    ("double-all", "Read numbers on one line. Print each of them times 2.",
     _READ_LIST + "print(*[x * 2 for x in xs])", _LIST),
    ("mean", "Read numbers on one line. Print their mean.",
     _READ_LIST + "print(sum(xs) / len(xs))", _LIST),
    ("count-sevens", "Read numbers on one line. Print how many of them are 7.",
     _READ_LIST + "print(xs.count(7))", numbers(3, 9, 5, 8)),
    ("word-length", "Read a word. Print how many letters it has.", _READ_WORD + "print(len(s))",
     _WORD),
    ("upper", "Read a word. Print it in capital letters.", _READ_WORD + "print(s.upper())", _WORD),
    ("turn-word", "Read a word. Print it backwards.", _READ_WORD + "print(s[::-1])", _WORD),
    ("first-letter", "Read a word. Print its first letter.", _READ_WORD + "print(s[0])", _WORD),
    ("last-letter", "Read a word. Print its last letter.", _READ_WORD + "print(s[-1])", _WORD),
    ("word-twice", "Read a word. Print it twice, with nothing between.",
     _READ_WORD + "print(s * 2)", _WORD),
    ("count-a", "Read a word. Print how many letters a it has.",
     _READ_WORD + 'print(s.count("a"))', word(2, 10, "abc")),
    ("same-backwards", "Read a word. Print yes if it reads the same backwards, else no.",
     _READ_WORD + 'print("yes" if s == s[::-1] else "no")', mirrored(word(2, 4, "abc"))),
    ("greet", "Read a name. Print hello, a space and the name.",
     _READ_WORD + 'print("hello", s)', _WORD),
    ("count-words", "Read words on one line. Print how many there are.",
     _READ_WORDS + "print(len(ws))", _WORDS),
    ("first-word", "Read words on one line. Print the first.", _READ_WORDS + "print(ws[0])",
     _WORDS),
    ("sort-words", "Read words on one line. Print them in the order of the alphabet.",
     _READ_WORDS + "print(*sorted(ws))", _WORDS),
    ("repeat-word", "Read a word and, on the next line, a number n. Print the word n times, with"
     " nothing between.", _READ_WORD + _READ_N + "print(s * n)", lines(_WORD, whole(1, 5))),
    ("celsius", "Read a temperature in degrees Celsius. Print it in degrees Fahrenheit: times"
     " 1.8, plus 32.", "c = float(input())\nprint(c * 1.8 + 32)", decimal(-30, 45, 1)),
)  # fmt: skip
