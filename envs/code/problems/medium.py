"""The medium band: a loop, a count or a small rule; four to ten lines."""

from envs.code.problems.inputs import (
    choice,
    counted,
    decimal,
    distinct,
    grid,
    lines,
    numbers,
    odd_numbers,
    row,
    shuffled,
    whole,
    word,
    words,
)

_LIST = numbers(1, 12, -20, 20)
_N = "n = int(input())\n"
_XS = "xs = list(map(int, input().split()))\n"

PROBLEMS = (
    ("digit-sum", "Read a number n, at least 0. Print the sum of its digits.",
     "print(sum(int(d) for d in input()))", whole(0, 10**8)),
    ("factorial", "Read n from 0 to 20. Print the product of all numbers from 1 to n.",
     _N + "p = 1\nfor i in range(2, n + 1):\n    p *= i\nprint(p)", whole(0, 20)),
    ("fibonacci", "A row starts with 0 and 1; every later number is the sum of the two before."
     " Read n, at least 0. Print number n of the row, counted from 0.",
     _N + "a, b = 0, 1\nfor _ in range(n):\n    a, b = b, a + b\nprint(a)", whole(0, 60)),
    ("count-divisors", "Read n, at least 1. Print how many numbers from 1 to n divide it.",
     _N + "print(sum(n % i == 0 for i in range(1, n + 1)))", whole(1, 500)),
    ("is-prime", "Read n, at least 1. Print yes if exactly two numbers divide it, 1 and n itself,"
     " else no.", _N + "k = sum(n % i == 0 for i in range(1, n + 1))\n"
     'print("yes" if k == 2 else "no")', whole(1, 60)),
    ("common-divisor", "Read two numbers, both at least 1. Print the largest number that divides"
     " both.", "from math import gcd\na, b = map(int, input().split())\nprint(gcd(a, b))",
     row(whole(1, 300), whole(1, 300))),
    ("common-multiple", "Read two numbers, both at least 1. Print the smallest number that both"
     " of them divide.", "from math import lcm\na, b = map(int, input().split())\n"
     "print(lcm(a, b))", row(whole(1, 60), whole(1, 60))),
    ("halve-or-triple", "Read n, at least 1. While n is not 1, halve it if it is even, else"
     " replace it by 3 n + 1. Print how many times that was done.",
     _N + "k = 0\nwhile n != 1:\n    n = n // 2 if n % 2 == 0 else 3 * n + 1\n    k += 1\nprint(k)",
     whole(1, 300)),
    ("to-binary", "Read n, at least 0. Print it in base 2, without zeros in front.",
     _N + 'print(bin(n)[2:])', whole(0, 5000)),
    ("from-binary", "Read a number written in base 2. Print it in base 10.",
     "print(int(input(), 2))", word(1, 14, "01")),
    ("second-largest", "Read at least two different numbers. Print the second largest.",
     _XS + "print(sorted(xs)[-2])", distinct(2, 10, -50, 50)),
    ("running-sums", "Read numbers. For each place print the sum of all numbers up to it.",
     _XS + "t = 0\nout = []\nfor x in xs:\n    t += x\n    out.append(t)\nprint(*out)", _LIST),
    ("differences", "Read at least two numbers. Print each number minus the one before it.",
     _XS + "print(*[b - a for a, b in zip(xs, xs[1:])])", numbers(2, 10, -20, 20)),
    ("only-even", "Read numbers. Print how many of them are even, and the sum of those.",
     _XS + "e = [x for x in xs if x % 2 == 0]\nprint(len(e), sum(e))", _LIST),
    ("without-repeats", "Read numbers. Print each of them once, in the order in which they first"
     " appear.", _XS + "print(*dict.fromkeys(xs))", numbers(1, 12, 1, 6)),
    ("most-frequent", "Read numbers. Print the one that appears most often; of several, the"
     " smallest.", _XS + "print(min(sorted(set(xs)), key=lambda x: -xs.count(x)))",
     numbers(1, 12, 1, 5)),
    ("place-of-largest", "Read numbers. Print the place of the largest, counted from 1; of"
     " several, the first place.", _XS + "print(xs.index(max(xs)) + 1)", numbers(1, 12, 0, 9)),
    ("median", "Read an odd number of numbers. Print the one in the middle when they are sorted.",
     _XS + "print(sorted(xs)[len(xs) // 2])", odd_numbers(4, -20, 20)),
    ("longest-run", "Read numbers. Print the length of the longest part in which all neighbours"
     " are equal.", _XS + "best = k = 1\nfor a, b in zip(xs, xs[1:]):\n"
     "    k = k + 1 if a == b else 1\n    best = max(best, k)\nprint(best)",
     numbers(1, 14, 1, 2)),
    ("is-sorted", "Read numbers. Print yes if no number is smaller than the one before it, else"
     " no.", _XS + 'print("yes" if xs == sorted(xs) else "no")', numbers(1, 4, 0, 9)),
    ("rotate", "Read a number k and then, on the next line, numbers. Move the first number to the"
     " end k times and print the numbers.", "k = int(input())\n" + _XS
     + "k %= len(xs)\nprint(*(xs[k:] + xs[:k]))", lines(whole(0, 12), numbers(1, 8, 0, 9))),
    ("sum-of-squares", "Read n, at least 1. Print 1 times 1 plus 2 times 2 and so on up to n"
     " times n.", _N + "print(sum(i * i for i in range(1, n + 1)))", whole(1, 200)),
    ("multiples", "Read n. Print the sum of all numbers below n that 3 or 5 divides.",
     _N + "print(sum(i for i in range(1, n) if i % 3 == 0 or i % 5 == 0))", whole(1, 300)),
    ("clap-game", "Read n. For every number from 1 to n print a line: clap if 4 divides it or it"
     " has the digit 4, else the number.", _N + "for i in range(1, n + 1):\n"
     '    print("clap" if i % 4 == 0 or "4" in str(i) else i)', whole(1, 30)),
    ("stairs-of-stars", "Read n. Print n lines; line i has i stars.",
     _N + 'for i in range(1, n + 1):\n    print("*" * i)', whole(1, 12)),
    ("times-table", "Read n. Print n lines of n numbers: in line i and place j stands i times j.",
     _N + "for i in range(1, n + 1):\n    print(*[i * j for j in range(1, n + 1)])", whole(1, 12)),
    ("vowels", "Read a word. Print how many of its letters are a, e, i, o or u.",
     'print(sum(c in "aeiou" for c in input()))', word(1, 12, "abcdeiou")),
    ("letter-counts", "Read a word. For each of its letters, in the order of the alphabet, print a"
     " line with the letter and how often it appears.",
     's = input()\nfor c in sorted(set(s)):\n    print(c, s.count(c))', word(1, 12, "abcd")),
    ("longest-word", "Read words. Print the longest; of several, the first.",
     "print(max(input().split(), key=len))", words(1, 7)),
    ("turn-each-word", "Read words. Print each of them backwards, in the same order.",
     "print(*[w[::-1] for w in input().split()])", words(1, 6)),
    ("capitals-first", "Read words. Print them with the first letter of each as a capital.",
     "print(*[w.capitalize() for w in input().split()])", words(1, 6)),
    ("same-letters", "Read two words, one a line. Print yes if one can be made from the other by"
     " changing the order of its letters, else no.",
     'print("yes" if sorted(input()) == sorted(input()) else "no")',
     shuffled(word(2, 6, "abc"))),
    ("shift-letters", "Read a number k from 0 to 25 and, on the next line, a word. Move every"
     " letter k places on in the alphabet; after z comes a.",
     "k = int(input())\ns = input()\n"
     'print("".join(chr((ord(c) - 97 + k) % 26 + 97) for c in s))',
     lines(whole(0, 25), word(1, 10, "abcmnxyz"))),
    ("squeeze", "Read a word. Print it with every run of equal letters made one letter.",
     "s = input()\nout = s[0]\nfor c in s:\n    if c != out[-1]:\n        out += c\nprint(out)",
     word(1, 14, "ab")),
    ("pack-runs", "Read a word. Print each run of equal letters as the letter and the length of"
     " the run, with nothing between.", "from itertools import groupby\n"
     'print("".join(c + str(len(list(g))) for c, g in groupby(input())))', word(1, 14, "ab")),
    ("common-start", "Read two words, one a line. Print how many letters they have in common from"
     " the start.", "n = 0\nfor a, b in zip(input(), input()):\n    if a != b:\n        break\n"
     "    n += 1\nprint(n)", lines(word(3, 8, "aaab"), word(3, 8, "aaab"))),
    ("balance", "Read a word of + and - signs. Start at 0, add 1 for each +, take away 1 for each"
     " -. Print the smallest value on the way, 0 at the start included.",
     'n = low = 0\nfor c in input():\n    n += 1 if c == "+" else -1\n    low = min(low, n)\n'
     "print(low)", word(1, 14, "+-")),
    ("simple-brackets", "Read a word of ( and ). Print yes if every bracket has its partner, else"
     " no.", "n = 0\nok = True\nfor c in input():\n"
     '    n += 1 if c == "(" else -1\n    ok = ok and n >= 0\n'
     'print("yes" if ok and n == 0 else "no")',
     choice("()", "(())", ")(", "(()", "()()", "())(", "((()))", "(()))", "()(())", ")", "(",
            "(()())", "((", "()())(")),
    ("column-sums", "The first line has the height h and the width w of a table; then come h"
     " lines of w digits. Print the sum of each column.",
     "h, w = map(int, input().split())\nrows = [input() for _ in range(h)]\n"
     "print(*[sum(int(r[j]) for r in rows) for j in range(w)])", grid(1, 5, "0123456789")),
    ("turn-grid", "The first line has the height h and the width w of a grid; then come h lines"
     " of w letters. Print the grid with rows and columns exchanged.",
     "h, w = map(int, input().split())\nrows = [input() for _ in range(h)]\n"
     'for j in range(w):\n    print("".join(r[j] for r in rows))', grid(1, 5, "abc")),
    ("count-walls", "The first line has the height h and the width w of a map; then come h lines"
     " of # and dots. Print how many pairs of # are neighbours, left-right or above-below.",
     "h, w = map(int, input().split())\nr = [input() for _ in range(h)]\nn = 0\n"
     "for i in range(h):\n    for j in range(w):\n        if r[i][j] == '#':\n"
     "            n += i + 1 < h and r[i + 1][j] == '#'\n"
     "            n += j + 1 < w and r[i][j + 1] == '#'\nprint(n)", grid(1, 5, "#.")),
    ("bill", "The first line has the number of things bought; then comes a line for each: how"
     " many, and the price of one. Print what all of it costs.",
     "t = 0\nfor _ in range(int(input())):\n    k, p = input().split()\n"
     "    t += int(k) * float(p)\nprint(round(t, 2))",
     counted(1, 5, row(whole(1, 9), decimal(1, 20)))),
    ("votes", "The first line has the number of votes; then comes a name on each line. Print the"
     " name with most votes; of several, the first in the alphabet.",
     "v = [input() for _ in range(int(input()))]\nprint(min(set(v), key=lambda x: (-v.count(x), x)))",
     counted(1, 9, choice("ann", "bob", "cleo"))),
    ("hours", "Read a number of seconds. Print it as hours:minutes:seconds, with two digits for"
     " minutes and seconds.", 's = int(input())\nprint(f"{s // 3600}:{s // 60 % 60:02}:{s % 60:02}")',
     whole(0, 100000)),
    ("coins", "There are coins of 25, 10, 5 and 1. Read an amount. Print the fewest coins that"
     " make it.", "n = int(input())\nk = 0\nfor c in (25, 10, 5, 1):\n    k += n // c\n    n %= c\n"
     "print(k)", whole(0, 300)),
    ("perfect-square", "Read n, at least 0. Print yes if it is some whole number times itself,"
     " else no.", "from math import isqrt\n" + _N
     + 'print("yes" if isqrt(n) ** 2 == n else "no")',
     choice("0", "1", "2", "4", "8", "9", "12", "16", "24", "25", "49", "50", "99", "100", "120",
            "121")),
    ("add-to-palindrome", "Read a word. Print the fewest letters that must be added at its end so"
     " that it reads the same backwards.", "s = input()\nk = 0\n"
     "while s[k:] != s[k:][::-1]:\n    k += 1\nprint(k)", word(2, 6, "ab")),
)  # fmt: skip
