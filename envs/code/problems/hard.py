"""The hard band: search, dynamic programming, graphs, parsing. Some problems have several answers.

For those, the fifth field is the source of `check(input, expected, actual) -> bool`.
"""

from envs.code.problems.inputs import (
    choice,
    counted,
    decimal,
    distinct,
    graph,
    grid,
    lines,
    numbers,
    row,
    tree,
    whole,
    word,
    words,
)

_XS = "xs = list(map(int, input().split()))\n"
_GRAPH = (
    "n, m = map(int, input().split())\nnext_to = [[] for _ in range(n + 1)]\n"
    "for _ in range(m):\n    a, b = map(int, input().split())\n"
    "    next_to[a].append(b)\n    next_to[b].append(a)\n"
)
_GRAPH_TEXT = (
    "The first line has the number of towns n and of roads m; then comes a line for each road"
    " with the two towns that it joins. Towns are numbered from 1. "
)
_GRID = "h, w = map(int, input().split())\nr = [input() for _ in range(h)]\n"
_GRID_TEXT = (
    "The first line has the height h and the width w of a map; then come h lines of # (wall) and"
    " dots (free). "
)

_CHECK_PAIR = """
def check(input, expected, actual):
    first, second = input.split("\\n")[:2]
    target, xs = int(first), list(map(int, second.split()))
    words = actual.split()
    if expected.split() == ["none"] or words == ["none"]:
        return words == expected.split()
    if len(words) != 2 or not all(w.isascii() and w.isdigit() and len(w) < 9 for w in words):
        return False
    i, j = int(words[0]) - 1, int(words[1]) - 1
    return 0 <= i < len(xs) and 0 <= j < len(xs) and i != j and xs[i] + xs[j] == target
"""
_CHECK_PATH = """
def check(input, expected, actual):
    lines = [list(map(int, line.split())) for line in input.strip().split("\\n")]
    (n, _), roads = lines[0], {frozenset(pair) for pair in lines[1:]}
    words = actual.split()
    if expected.split() == ["none"] or words == ["none"]:
        return words == expected.split()
    if not all(w.isascii() and w.isdigit() and len(w) < 9 for w in words):
        return False
    path = list(map(int, words))
    if len(path) != len(expected.split()) or path[0] != 1 or path[-1] != n:
        return False
    return all(frozenset(pair) in roads for pair in zip(path, path[1:]))
"""
_CHECK_ORDER = """
def check(input, expected, actual):
    lines = [list(map(int, line.split())) for line in input.strip().split("\\n")]
    n = lines[0][0]
    words = actual.split()
    if not all(w.isascii() and w.isdigit() and len(w) < 9 for w in words):
        return False
    order = list(map(int, words))
    if sorted(order) != list(range(1, n + 1)):
        return False
    place = {node: i for i, node in enumerate(order)}
    return all(place[a] < place[b] for a, b in lines[1:])
"""
_CHECK_SPLIT = """
def check(input, expected, actual):
    n = int(input)
    words = actual.split()
    if len(words) != 2 or not all(w.isascii() and w.isdigit() and len(w) < 9 for w in words):
        return False
    a, b = map(int, words)
    return a >= 1 and b >= 1 and a + b == n and "7" not in words[0] + words[1]
"""
_CHECK_SUBSEQUENCE = """
def check(input, expected, actual):
    words, right = actual.split(), expected.split()
    xs = input.split()
    if len(words) != len(right):
        return False
    rest = iter(xs)
    if not all(any(w == x for x in rest) for w in words):
        return False
    numbers = list(map(int, words))
    return all(a < b for a, b in zip(numbers, numbers[1:]))
"""

PROBLEMS = (
    ("pair-with-sum", "The first line has a number t, the second line numbers. Print the places,"
     " counted from 1, of two of the numbers whose sum is t, any two that will do, or none.",
     "t = int(input())\n" + _XS + "seen = {}\nfor i, x in enumerate(xs, 1):\n"
     "    if t - x in seen:\n        print(seen[t - x], i)\n        break\n    seen[x] = i\n"
     'else:\n    print("none")', lines(whole(0, 20), numbers(2, 9, 0, 12)), _CHECK_PAIR),
    ("shortest-way", _GRAPH_TEXT + "Print the towns of a shortest way from town 1 to town n, any"
     " one, or none.", _GRAPH + "came = {1: 0}\nqueue = [1]\nfor a in queue:\n"
     "    for b in next_to[a]:\n        if b not in came:\n            came[b] = a\n"
     "            queue.append(b)\nif n not in came:\n    print('none')\nelse:\n    way = [n]\n"
     "    while way[-1] != 1:\n        way.append(came[way[-1]])\n    print(*way[::-1])",
     graph(3, 8, 0.35), _CHECK_PATH),
    ("order-of-work", "The first line has the number of jobs n and of rules m; then comes a line"
     " for each rule: job a must be done before job b. The rules can be met. Print the jobs in an"
     " order that meets them, any one.",
     "n, m = map(int, input().split())\nrules = [tuple(map(int, input().split())) for _ in"
     " range(m)]\nleft = set(range(1, n + 1))\nwhile left:\n"
     "    job = max(j for j in left if not any(b == j and a in left for a, b in rules))\n"
     "    left.remove(job)\n    print(job, end=' ')\nprint()", graph(2, 8, 0.3), _CHECK_ORDER),
    ("no-sevens", "Read n, at least 2. Print two numbers, both at least 1, with sum n and without"
     " the digit 7, any that will do.",
     "n = int(input())\nfor a in range(1, n):\n    if '7' not in str(a) + str(n - a):\n"
     "        print(a, n - a)\n        break", whole(2, 3000), _CHECK_SPLIT),
    ("growing-part", "Read numbers. Leave out as few of them as possible so that each of the rest"
     " is larger than the one before it. Print the rest, any best one.",
     _XS + "best = []\nfor i, x in enumerate(xs):\n"
     "    before = [b for b, y in zip(best, xs) if y < x]\n"
     "    best.append(max(before, key=len, default=[]) + [x])\nprint(*max(best, key=len))",
     distinct(1, 9, 0, 40), _CHECK_SUBSEQUENCE),
    ("largest-sum", "Read numbers. Print the largest sum of a part of them without gaps; the part"
     " has at least one number.", _XS + "best = now = xs[0]\nfor x in xs[1:]:\n"
     "    now = max(x, now + x)\n    best = max(best, now)\nprint(best)",
     numbers(1, 14, -12, 10)),
    ("common-letters", "Read two words, one a line. Letters may be left out of both. Print the"
     " length of the longest word that both can become.",
     "s, t = input(), input()\nrow = [0] * (len(t) + 1)\nfor c in s:\n    new = [0]\n"
     "    for j, d in enumerate(t):\n"
     "        new.append(row[j] + 1 if c == d else max(row[j + 1], new[j]))\n    row = new\n"
     "print(row[-1])", lines(word(1, 10, "abc"), word(1, 10, "abc"))),
    ("edits", "Read two words, one a line. One step puts in a letter, takes one out or changes"
     " one. Print the fewest steps from the first word to the second.",
     "s, t = input(), input()\nrow = list(range(len(t) + 1))\nfor i, c in enumerate(s, 1):\n"
     "    new = [i]\n    for j, d in enumerate(t):\n"
     "        new.append(min(row[j] + (c != d), row[j + 1] + 1, new[j] + 1))\n    row = new\n"
     "print(row[-1])", lines(word(1, 8, "abc"), word(1, 8, "abc"))),
    ("change-ways", "The first line has an amount, the second line the values of coins, all"
     " different; there are enough of each. Print in how many ways they make the amount. The order"
     " of coins does not count.", "n = int(input())\nways = [1] + [0] * n\n"
     "for c in map(int, input().split()):\n    for i in range(c, n + 1):\n"
     "        ways[i] += ways[i - c]\nprint(ways[n])", lines(whole(0, 60), distinct(1, 4, 1, 12))),
    ("fewest-coins", "The first line has an amount, the second line the values of coins, all"
     " different; there are enough of each. Print the fewest coins that make the amount, or -1.",
     "n = int(input())\ncoins = list(map(int, input().split()))\nbig = 10 ** 9\n"
     "best = [0] + [big] * n\nfor i in range(1, n + 1):\n"
     "    best[i] = 1 + min((best[i - c] for c in coins if c <= i), default=big)\n"
     "print(best[n] if best[n] < big else -1)", lines(whole(0, 40), distinct(1, 3, 2, 11))),
    ("backpack", "The first line has what a bag can carry; the second the number of things; then"
     " comes a line for each thing with weight and worth. Print the largest worth that the bag can"
     " hold.", "c = int(input())\nbest = [0] * (c + 1)\nfor _ in range(int(input())):\n"
     "    w, v = map(int, input().split())\n    for i in range(c, w - 1, -1):\n"
     "        best[i] = max(best[i], best[i - w] + v)\nprint(best[c])",
     lines(whole(1, 20), counted(1, 6, row(whole(1, 9), whole(1, 20))))),
    ("equal-halves", "Read numbers, all at least 1. Print yes if they can be put in two groups of"
     " the same sum, else no.", _XS + "sums = {0}\nfor x in xs:\n    sums |= {s + x for s in sums}\n"
     'print("yes" if sum(xs) % 2 == 0 and sum(xs) // 2 in sums else "no")',
     numbers(3, 6, 1, 5)),
    ("parts-of-town", _GRAPH_TEXT + "Towns that can reach each other belong together. Print how"
     " many groups of towns there are.", _GRAPH + "seen = set()\ngroups = 0\n"
     "for start in range(1, n + 1):\n    if start not in seen:\n        groups += 1\n"
     "        seen.add(start)\n        todo = [start]\n        while todo:\n"
     "            for b in next_to[todo.pop()]:\n                if b not in seen:\n"
     "                    seen.add(b)\n                    todo.append(b)\nprint(groups)",
     graph(3, 9, 0.18)),
    ("steps-between", _GRAPH_TEXT + "Print the fewest roads from town 1 to town n, or -1.",
     _GRAPH + "far = {1: 0}\nqueue = [1]\nfor a in queue:\n    for b in next_to[a]:\n"
     "        if b not in far:\n            far[b] = far[a] + 1\n            queue.append(b)\n"
     "print(far.get(n, -1))", graph(3, 9, 0.22)),
    ("two-colours", _GRAPH_TEXT + "Print yes if every town can be painted red or blue so that no"
     " road joins two of the same colour, else no.", _GRAPH + "colour = {}\nok = True\n"
     "for start in range(1, n + 1):\n    if start not in colour:\n        colour[start] = 0\n"
     "        todo = [start]\n        while todo:\n            a = todo.pop()\n"
     "            for b in next_to[a]:\n                if b not in colour:\n"
     "                    colour[b] = 1 - colour[a]\n                    todo.append(b)\n"
     "                elif colour[b] == colour[a]:\n                    ok = False\n"
     'print("yes" if ok else "no")', graph(3, 6, 0.35)),
    ("cheapest-way", "The first line has the number of towns n and of roads m; then comes a line"
     " for each road: the two towns that it joins and its price. Towns are numbered from 1. Print"
     " the lowest price of a way from town 1 to town n, or -1.",
     "from heapq import heappush, heappop\nn, m = map(int, input().split())\n"
     "next_to = [[] for _ in range(n + 1)]\nfor _ in range(m):\n"
     "    a, b, c = map(int, input().split())\n    next_to[a].append((b, c))\n"
     "    next_to[b].append((a, c))\ndone = {}\nheap = [(0, 1)]\nwhile heap:\n"
     "    d, a = heappop(heap)\n    if a not in done:\n        done[a] = d\n"
     "        for b, c in next_to[a]:\n            heappush(heap, (d + c, b))\n"
     "print(done.get(n, -1))", graph(3, 8, 0.4, 20)),
    ("cheapest-net", "The first line has the number of towns n and of possible roads m; then comes"
     " a line for each: the two towns and the price. Towns are numbered from 1. Roads are built so"
     " that as many towns as can be are joined, at the lowest price. Print that price.",
     "n, m = map(int, input().split())\nroads = sorted((c, a, b) for a, b, c in"
     " (map(int, input().split()) for _ in range(m)))\ngroup = list(range(n + 1))\ntotal = 0\n"
     "for c, a, b in roads:\n    if group[a] != group[b]:\n        total += c\n"
     "        old = group[b]\n        group = [group[a] if g == old else g for g in group]\n"
     "print(total)", graph(3, 7, 0.5, 20)),
    ("depth-of-tree", "The first line has n; the second line has, for each node from 2 to n, its"
     " parent, a smaller number. Node 1 is the root. Print the most steps from the root to a node.",
     "n = int(input())\ndepth = [0, 0]\nfor p in map(int, input().split()):\n"
     "    depth.append(depth[p] + 1)\nprint(max(depth))", tree(2, 12)),
    ("sizes-of-families", "The first line has n; the second line has, for each node from 2 to n,"
     " its parent, a smaller number. Print for each node from 1 to n how many nodes are below it,"
     " itself included.", "n = int(input())\nparent = [0, 0] + list(map(int, input().split()))\n"
     "size = [1] * (n + 1)\nfor i in range(n, 1, -1):\n    size[parent[i]] += size[i]\n"
     "print(*size[1:])", tree(2, 12)),
    ("islands", _GRID_TEXT + "Free cells that touch along a side belong together. Print how many"
     " such areas there are.", _GRID + "seen = set()\nk = 0\nfor i in range(h):\n"
     "    for j in range(w):\n        if r[i][j] == '.' and (i, j) not in seen:\n"
     "            k += 1\n            todo = [(i, j)]\n            while todo:\n"
     "                y, x = todo.pop()\n"
     "                if 0 <= y < h and 0 <= x < w and r[y][x] == '.' and (y, x) not in seen:\n"
     "                    seen.add((y, x))\n"
     "                    todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]\nprint(k)",
     grid(2, 6, "#.")),
    ("maze", _GRID_TEXT + "Print the fewest steps from the upper left to the lower right cell,"
     " along sides and free cells only, or -1. If one of the two is a wall, print -1.",
     _GRID + "far = {}\nif r[0][0] == '.':\n    far[0, 0] = 0\nqueue = list(far)\n"
     "for y, x in queue:\n    for b in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):\n"
     "        if 0 <= b[0] < h and 0 <= b[1] < w and r[b[0]][b[1]] == '.' and b not in far:\n"
     "            far[b] = far[y, x] + 1\n            queue.append(b)\n"
     "print(far.get((h - 1, w - 1), -1))", grid(2, 5, "#....")),
    ("ways-down", _GRID_TEXT + "Steps go right or down. Print how many ways lead from the upper"
     " left to the lower right cell without a wall.", _GRID + "ways = [0] * w\nways[0] = 1\n"
     "for i in range(h):\n    for j in range(w):\n        if r[i][j] == '#':\n"
     "            ways[j] = 0\n        elif j:\n            ways[j] += ways[j - 1]\n"
     "print(ways[-1])", grid(2, 6, "#......")),
    ("largest-square", _GRID_TEXT + "Print the side of the largest square without a wall.",
     _GRID + "best = 0\nrow = [0] * w\nfor i in range(h):\n    new = []\n    for j in range(w):\n"
     "        near = min(row[j], row[j - 1], new[j - 1]) if j else 0\n"
     "        new.append(near + 1 if r[i][j] == '.' else 0)\n    row = new\n"
     "    best = max(best, *row)\nprint(best)", grid(2, 6, "#....")),
    ("three-brackets", "Read a word of ()[]{}. Print yes if every bracket is closed by its own"
     " kind in the right order, else no.", "stack = []\nok = True\nfor c in input():\n"
     "    if c in '([{':\n        stack.append(c)\n"
     "    elif not stack or stack.pop() + c not in ('()', '[]', '{}'):\n        ok = False\n"
     '        break\nprint("yes" if ok and not stack else "no")',
     choice("()", "([])", "([)]", "{[()]}", "{[}", "((", "]", "{}[]()", "[({})](", "{{}}", "(]",
            "[[]{}]", "}{", "({[]})[]")),
    ("calculator", "Read a line of numbers with + - * between them and no spaces. Print its value;"
     " * goes first.", "s = input()\ntotal = 0\nfor part in s.replace('-', '+-').split('+'):\n"
     "    p = 1\n    for f in part.split('*'):\n        p *= int(f)\n    total += p\nprint(total)",
     choice("1+2", "2*3+4", "2+3*4", "10-2*3", "7", "1-2-3", "2*2*2-9", "5+6*7*2-1", "100-99",
            "3*4-2*6", "8-3+2", "12*12+1", "9-9*9", "1+1+1+1")),
    ("backwards-notation", "Read numbers and the signs + - *, with spaces between. A sign takes"
     " the last two values and puts its result in their place. Print the one value at the end.",
     "stack = []\nfor w in input().split():\n    if w in '+-*':\n"
     "        b, a = stack.pop(), stack.pop()\n"
     "        stack.append(a + b if w == '+' else a - b if w == '-' else a * b)\n"
     "    else:\n        stack.append(int(w))\nprint(stack[0])",
     choice("1 2 +", "3 4 * 2 -", "5 1 2 + 4 * + 3 -", "7", "2 3 4 * +", "10 2 - 3 -", "1 2 3 + -",
            "6 6 *", "4 5 6 7 + * -", "8 1 - 1 -", "2 2 * 2 * 2 *", "9 3 - 2 * 1 +", "1 1 - 5 *")),
    ("roman", "Read n from 1 to 3999. Print it in Roman numerals.",
     "n = int(input())\nout = ''\nfor v, s in zip((1000, 900, 500, 400, 100, 90, 50, 40, 10, 9,"
     " 5, 4, 1), 'M CM D CD C XC L XL X IX V IV I'.split()):\n    out += s * (n // v)\n    n %= v\n"
     "print(out)", whole(1, 3999)),
    ("primes-below", "Read n, at least 3. Print all prime numbers below n.",
     "n = int(input())\nprint(*[p for p in range(2, n) if all(p % d for d in range(2, p))])",
     whole(3, 120)),
    ("prime-factors", "Read n, at least 2. Print its prime factors from small to large, each as"
     " often as it divides n.", "n = int(input())\nd = 2\nout = []\nwhile n > 1:\n"
     "    while n % d == 0:\n        out.append(d)\n        n //= d\n    d += 1\nprint(*out)",
     whole(2, 5000)),
    ("large-power", "Read a, b and m. Print the rest of a to the power b divided by m. b can have"
     " 18 digits.", "a, b, m = map(int, input().split())\nprint(pow(a, b, m))",
     row(whole(2, 10**9), whole(0, 10**18), whole(2, 10**9))),
    ("meetings", "The first line has the number of meetings; then comes a line for each: when it"
     " begins and how long it lasts. One may begin when another ends. Print the most meetings that"
     " one person can attend from begin to end.",
     "m = []\nfor _ in range(int(input())):\n    a, d = map(int, input().split())\n"
     "    m.append((a + d, a))\nfree = k = 0\nfor end, start in sorted(m):\n"
     "    if start >= free:\n        free = end\n        k += 1\nprint(k)",
     counted(1, 8, row(whole(0, 20), whole(1, 6)))),
    ("covered-length", "The first line has the number of ribbons; then comes a line for each: where"
     " it begins on a line and its length. Print how much of the line they cover together.",
     "covered = set()\nfor _ in range(int(input())):\n    a, d = map(int, input().split())\n"
     "    covered |= set(range(a, a + d))\nprint(len(covered))",
     counted(1, 7, row(whole(0, 25), whole(1, 8)))),
    ("polygon-area", "The first line has the number of corners of a polygon, in order; then comes"
     " a line with x and y for each. Print its area: half the size of the sum of x1 y2 - x2 y1 over"
     " all sides from (x1, y1) to (x2, y2).",
     "c = [tuple(map(int, input().split())) for _ in range(int(input()))]\n"
     "print(abs(sum(a * d - b * e for (a, b), (e, d) in zip(c, c[1:] + c[:1]))) / 2)",
     counted(3, 6, row(whole(0, 9), whole(0, 9)))),
    ("half-life", "Read a start value, a share lost every day between 0 and 1, and a limit above"
     " 0, one a line. Print after how many whole days the value is below the limit, and the value"
     " then.", "v, p, low = float(input()), float(input()), float(input())\nk = 0\n"
     "while v >= low:\n    v *= 1 - p\n    k += 1\nprint(k, v)",
     lines(decimal(5, 90), choice("0.5", "0.25", "0.1", "0.3"), decimal(1, 4))),
    ("root-of-two-parts", "Read n, at least 1. Print the number x above 0 with x times x plus x"
     " equal to n.", "n = int(input())\nprint(((1 + 4 * n) ** 0.5 - 1) / 2)", whole(1, 5000)),
    ("sums-of-parts", "The first line has 9 numbers, the second line q; then come q lines with two"
     " places a and b, a at most b, counted from 1. For each of them print the sum of the numbers"
     " from place a to place b.",
     _XS + "for _ in range(int(input())):\n    a, b = map(int, input().split())\n"
     "    print(sum(xs[a - 1:b]))",
     lines(numbers(9, 9, -9, 30), counted(1, 5, row(whole(1, 5), whole(5, 9))))),
    ("next-larger", "Read numbers. For each print the nearest number to its right that is larger,"
     " or -1.", _XS + "print(*[next((y for y in xs[i + 1:] if y > x), -1) for i, x in"
     " enumerate(xs)])", numbers(1, 12, 0, 15)),
    ("sliding-largest", "The first line has k, the second line at least k numbers. Print the"
     " largest of each k neighbours, from left to right.",
     "k = int(input())\n" + _XS + "print(*[max(xs[i:i + k]) for i in range(len(xs) - k + 1)])",
     lines(whole(1, 4), numbers(4, 12, -9, 20))),
    ("word-ladder", "The first line has words, the second line two of its words. A step changes one"
     " letter and must give a word of the first line; all have the same length. Print the fewest"
     " steps from the one to the other, or -1.",
     "ws = set(input().split())\na, b = input().split()\nfar = {a: 0}\nqueue = [a]\n"
     "for w in queue:\n    for v in ws:\n"
     "        if v not in far and sum(x != y for x, y in zip(v, w)) == 1:\n"
     "            far[v] = far[w] + 1\n            queue.append(v)\nprint(far.get(b, -1))",
     choice("cat cot dot dog\ncat dog", "aa ab bb\naa bb", "aa bb\naa bb", "abc\nabc abc",
            "xy xz yz yy\nxy yz", "one ore ire\none ire", "mud mad sad sat\nmud sat",
            "pit pat pot\npit pot", "ab ba\nba ab", "hot hit bit bat\nhot bat",
            "aaa aab abb bbb aba\naaa bbb", "cold cord card ward warm\ncold warm",
            "no on\nno on")),
    ("rank-words", "Read words. Print each different word once, most frequent first, those that"
     " are equally frequent in the order of the alphabet.",
     "ws = input().split()\nprint(*sorted(set(ws), key=lambda w: (-ws.count(w), w)))",
     words(1, 10, "ab", 2)),
)  # fmt: skip
