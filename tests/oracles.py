"""The losses as plain loops over Python floats: slow, obvious, and what the fast ones are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Rows = Sequence[Sequence[float]]


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def positives(labels: Sequence[int], anchor: int) -> list[int]:
    return [j for j, label in enumerate(labels) if label == labels[anchor] and j != anchor]


def negatives(labels: Sequence[int], anchor: int) -> list[int]:
    return [j for j, label in enumerate(labels) if label != labels[anchor]]


def batch_hard(embeddings: Rows, labels: Sequence[int], margin: float | str) -> float:
    terms = []
    for a in range(len(labels)):
        if not positives(labels, a) or not negatives(labels, a):
            continue
        farthest = max(distance(embeddings[a], embeddings[p]) for p in positives(labels, a))
        nearest = min(distance(embeddings[a], embeddings[n]) for n in negatives(labels, a))
        gap = farthest - nearest
        terms.append(math.log1p(math.exp(gap)) if margin == "soft" else max(0.0, gap + float(margin)))
    return sum(terms) / len(terms) if terms else 0.0


def lifted_structure(
    embeddings: Rows, labels: Sequence[int], neg_margin: float = 1.0, pos_margin: float = 0.0
) -> float:
    """As the paper writes it: a sum over the negatives of both ends for every unordered positive pair."""
    terms = []
    for i in range(len(labels)):
        for j in positives(labels, i):
            if j < i:
                continue
            exponentials = [
                math.exp(neg_margin - distance(embeddings[end], embeddings[k]))
                for end in (i, j)
                for k in negatives(labels, end)
            ]
            if exponentials:
                lifted = math.log(sum(exponentials)) + distance(embeddings[i], embeddings[j]) - pos_margin
                terms.append(max(0.0, lifted) ** 2)
    return sum(terms) / (2 * len(terms)) if terms else 0.0


def phi(z: float, margin: float | str) -> float:
    return math.log1p(math.exp(z)) if margin == "soft" else max(0.0, z + float(margin))


def mean(terms: Sequence[float]) -> float:
    return sum(terms) / len(terms) if terms else 0.0


def nonzero_mean(terms: Sequence[float]) -> float:
    return mean([term for term in terms if term > 0])


def unit(row: Sequence[float]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in row))
    return [x / norm for x in row]


def triplets(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    return [(a, p, n) for a in range(len(labels)) for p in positives(labels, a) for n in negatives(labels, a)]


def batch_all(embeddings: Rows, labels: Sequence[int], margin: float | str, nonzero: bool = False) -> float:
    terms = [
        phi(distance(embeddings[a], embeddings[p]) - distance(embeddings[a], embeddings[n]), margin)
        for a, p, n in triplets(labels)
    ]
    return nonzero_mean(terms) if nonzero else mean(terms)


def semi_hard(embeddings: Rows, labels: Sequence[int], margin: float) -> float:
    """Over squared distances, as FaceNet writes it."""
    terms = []
    for a, p, n in triplets(labels):
        near, far = distance(embeddings[a], embeddings[p]) ** 2, distance(embeddings[a], embeddings[n]) ** 2
        if near < far < near + margin:
            terms.append(near - far + margin)
    return mean(terms)


def semi_hard_nearest(embeddings: Rows, labels: Sequence[int], margin: float | str) -> float:
    """Over squared distances."""
    terms = []
    for a in range(len(labels)):
        far = [distance(embeddings[a], embeddings[n]) ** 2 for n in negatives(labels, a)]
        for p in positives(labels, a) if far else []:
            near = distance(embeddings[a], embeddings[p]) ** 2
            terms.append(phi(near - min((d for d in far if d > near), default=max(far)), margin))
    return mean(terms)


def contrastive(
    embeddings: Rows,
    labels: Sequence[int],
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    squared: bool = False,
) -> float:
    near, far = [], []
    for i in range(len(labels)):
        near += [distance(embeddings[i], embeddings[j]) - pos_margin for j in positives(labels, i)]
        far += [neg_margin - distance(embeddings[i], embeddings[k]) for k in negatives(labels, i)]
    hinges = [[max(0.0, z) for z in part] for part in (near, far)]
    return sum(nonzero_mean([h * h / 2 for h in part] if squared else part) for part in hinges)


def unsquared_lifted_structure(embeddings: Rows, labels: Sequence[int], neg_margin: float = 1.0) -> float:
    """A sum over unordered pairs, without square (Hermans et al.)."""
    total = 0.0
    for i in range(len(labels)):
        for j in (j for j in positives(labels, i) if j > i and negatives(labels, i)):
            exponentials = [
                math.exp(neg_margin - distance(embeddings[end], embeddings[k]))
                for end in (i, j)
                for k in negatives(labels, end)
            ]
            total += max(0.0, math.log(sum(exponentials)) + distance(embeddings[i], embeddings[j]))
    return total


def generalized_lifted_structure(
    embeddings: Rows, labels: Sequence[int], neg_margin: float = 1.0, pos_margin: float = 0.0
) -> float:
    terms = []
    for a in range(len(labels)):
        if positives(labels, a) and negatives(labels, a):
            near = sum(
                math.exp(distance(embeddings[a], embeddings[p]) - pos_margin) for p in positives(labels, a)
            )
            far = sum(
                math.exp(neg_margin - distance(embeddings[a], embeddings[n])) for n in negatives(labels, a)
            )
            terms.append(max(0.0, math.log(near) + math.log(far)))
    return mean(terms)


def cross_batch_contrastive(
    batches: Sequence[tuple[Rows, Sequence[int]]],
    memory_size: int,
    start_step: int = 0,
    batch_weight: float = 0.0,
) -> list[float]:
    """The default contrastive loss of every batch against the newest rows, the batch's own among them."""
    memory: list[tuple[Sequence[float], int, object]] = []
    values = []
    for step, (embeddings, labels) in enumerate(batches):
        rows = [unit(row) for row in embeddings]
        memory += [(row, label, (step, i)) for i, (row, label) in enumerate(zip(rows, labels, strict=True))]
        memory = memory[-memory_size:]
        near, far = [], []
        for i, row in enumerate(rows):
            for other, label, key in memory:
                if key == (step, i):
                    continue
                if label == labels[i]:
                    near.append(max(0.0, distance(row, other)))
                else:
                    far.append(max(0.0, 1 - distance(row, other)))
        batch = contrastive(rows, labels)
        against_memory = nonzero_mean(near) + nonzero_mean(far)
        values.append(batch if step < start_step else against_memory + batch_weight * batch)
    return values


def value_differences(a: Sequence[int], b: Sequence[int]) -> float:
    """Hamming distance of attribute values; an unknown one, below 0, is half a difference."""
    return sum(0.5 if x < 0 or y < 0 else float(x != y) for x, y in zip(a, b, strict=True))


def identity_extremes(
    side: Rows, labels: Sequence[int], side_distance: Callable[..., float] = distance
) -> list[tuple[int, list[int], list[int]]]:
    """(anchor, nearest, farthest) by the side distance among the others of its identity, where there are any."""
    found = []
    for a in range(len(labels)):
        away = {j: side_distance(side[a], side[j]) for j in positives(labels, a)}
        if away:
            nearest = [j for j in away if away[j] == min(away.values())]
            found.append((a, nearest, [j for j in away if away[j] == max(away.values())]))
    return found


def attribute_identity_hard(
    embeddings: Rows,
    labels: Sequence[int],
    side: Rows,
    margin: float = 0.0,
    include_self: bool = False,
    side_distance: Callable[..., float] = distance,
) -> float:
    """Of cosine distances."""
    rows, terms = [unit(row) for row in embeddings], []

    def away(a: int, others: Sequence[int]) -> float:
        return mean([1 - sum(x * y for x, y in zip(rows[a], rows[j], strict=True)) for j in others])

    for a, nearest, farthest in identity_extremes(side, labels, side_distance):
        near = away(a, [a] if include_self else nearest)
        terms.append(max(0.0, away(a, farthest) - near + margin))
    return mean(terms)


def attribute_cross_entropy(
    logits: Sequence[Rows], targets: Sequence[Sequence[int]], smoothing: float = 0.0
) -> float:
    """One entry per attribute: rows of logits, and values, below 0 where unknown."""
    of_attributes = []
    for rows, values in zip(logits, targets, strict=True):
        terms = []
        for row, value in zip(rows, values, strict=True):
            if value >= 0:
                logs = [z - math.log(sum(math.exp(other) for other in row)) for z in row]
                terms.append(-(1 - smoothing) * logs[value] - smoothing * mean(logs))
        of_attributes.append(mean(terms))
    return mean(of_attributes)


def attribute_binary(
    logits: Sequence[Rows], targets: Sequence[Sequence[int]], smoothing: float = 0.0
) -> float:
    terms = []
    for rows, values in zip(logits, targets, strict=True):
        for row, value in zip(rows, values, strict=True):
            for v, z in enumerate(row):
                if value >= 0:
                    wanted = (1 - smoothing) * (v == value) + smoothing / 2
                    yes = 1 / (1 + math.exp(-z))
                    terms.append(-wanted * math.log(yes) - (1 - wanted) * math.log(1 - yes))
    return mean(terms)


# Miners: what they choose, as lists of indices.

Pairs = list[tuple[int, int]]
Triplets = list[tuple[int, int, int]]
Number = Callable[[int, int], float]
"""(anchor, draw) -> a random number in [0, 1)."""


def batch_hard_triplets(embeddings: Rows, labels: Sequence[int]) -> Triplets:
    return hardness_triplets(embeddings, labels, "hardest", "hardest", {}, lambda anchor, draw: 0.0)


def extreme(distances: Mapping[int, float], farthest: bool) -> int | None:
    return (max if farthest else min)(distances, key=distances.get, default=None)


def easy_hard_pairs(
    embeddings: Rows,
    labels: Sequence[int],
    pos_strategy: str,
    neg_strategy: str,
    pos_range: tuple[float, float] = (0.0, math.inf),
    neg_range: tuple[float, float] = (0.0, math.inf),
) -> tuple[Pairs, Pairs]:
    chosen_positives, chosen_negatives = [], []
    for a in range(len(labels)):
        near = {p: distance(embeddings[a], embeddings[p]) for p in positives(labels, a)}
        far = {n: distance(embeddings[a], embeddings[n]) for n in negatives(labels, a)}
        all_near, all_far = list(near), list(far)
        near = {p: d for p, d in near.items() if pos_range[0] <= d <= pos_range[1]}
        far = {n: d for n, d in far.items() if neg_range[0] <= d <= neg_range[1]}
        if pos_strategy == "semihard":
            negative = extreme(far, neg_strategy == "easy")
            near = {p: d for p, d in near.items() if negative is not None and d < far[negative]}
        positive = extreme(near, pos_strategy != "easy")
        if neg_strategy == "semihard":
            far = {n: d for n, d in far.items() if positive is not None and d > near[positive]}
        negative = extreme(far, neg_strategy == "easy")
        if "all" not in (pos_strategy, neg_strategy) and (positive is None or negative is None):
            continue
        ps = all_near if pos_strategy == "all" else [positive]
        ns = all_far if neg_strategy == "all" else [negative]
        chosen_positives += [(a, p) for p in ps if p is not None]
        chosen_negatives += [(a, n) for n in ns if n is not None]
    return chosen_positives, chosen_negatives


def multi_similarity_pairs(embeddings: Rows, labels: Sequence[int], epsilon: float) -> tuple[Pairs, Pairs]:
    """By cosine."""
    rows = [unit(row) for row in embeddings]
    chosen_positives, chosen_negatives = [], []
    for a in range(len(labels)):
        near = {p: sum(x * y for x, y in zip(rows[a], rows[p], strict=True)) for p in positives(labels, a)}
        far = {n: sum(x * y for x, y in zip(rows[a], rows[n], strict=True)) for n in negatives(labels, a)}
        if near and far:
            chosen_positives += [(a, p) for p, s in near.items() if s - epsilon < max(far.values())]
            chosen_negatives += [(a, n) for n, s in far.items() if s + epsilon > min(near.values())]
    return chosen_positives, chosen_negatives


def margin_triplets(embeddings: Rows, labels: Sequence[int], margin: float, kind: str) -> Triplets:
    wanted = {
        "all": lambda gap: gap <= margin,
        "hard": lambda gap: gap <= margin and gap <= 0,
        "semihard": lambda gap: 0 < gap <= margin,
        "easy": lambda gap: gap > margin,
    }[kind]
    return [
        (a, p, n)
        for a, p, n in triplets(labels)
        if wanted(distance(embeddings[a], embeddings[n]) - distance(embeddings[a], embeddings[p]))
    ]


def nearest_beyond_triplets(embeddings: Rows, labels: Sequence[int]) -> Triplets:
    chosen = []
    for a in range(len(labels)):
        far = {n: distance(embeddings[a], embeddings[n]) for n in negatives(labels, a)}
        for p in positives(labels, a) if far else []:
            beyond = {n: d for n, d in far.items() if d > distance(embeddings[a], embeddings[p])}
            chosen.append((a, p, min(beyond, key=beyond.get) if beyond else max(far, key=far.get)))
    return chosen


def draw(weights: dict[int, float], number: float) -> int:
    """The first key, in ascending order, at which the sum of weights exceeds that share of the whole."""
    total, so_far = sum(weights.values()), 0.0
    for key in sorted(weights):
        so_far += weights[key]
        if so_far > number * total:
            return key
    raise ValueError("no weights")


def distance_weights(
    embeddings: Rows, labels: Sequence[int], anchor: int, cutoff: float = 0.5, limit: float = 1.4
) -> dict[int, float]:
    """Probabilities of the negatives of an anchor, relative to the largest."""
    rows, dim = [unit(row) for row in embeddings], len(embeddings[0])
    logs = {}
    for n in negatives(labels, anchor):
        d = max(distance(rows[anchor], rows[n]), cutoff)
        if d < limit:
            logs[n] = -(dim - 2) * math.log(d) - (dim - 3) / 2 * math.log(1 - d * d / 4)
    return {n: math.exp(value - max(logs.values())) for n, value in logs.items()}


def distance_weighted_triplets(embeddings: Rows, labels: Sequence[int], number: Number) -> Triplets:
    chosen = []
    for a in range(len(labels)):
        weights = distance_weights(embeddings, labels, a)
        same = [j for j, label in enumerate(labels) if label == labels[a]]
        chosen += [(a, p, draw(weights, number(a, j))) for j, p in enumerate(same) if p != a and weights]
    return chosen


def hardness_triplets(
    embeddings: Rows,
    labels: Sequence[int],
    negative: str,
    positive: str,
    settings: Mapping[str, float],
    number: Number,
) -> Triplets:
    chosen = []
    for a in range(len(labels)):
        near = {p: distance(embeddings[a], embeddings[p]) for p in positives(labels, a)}
        far = {n: distance(embeddings[a], embeddings[n]) for n in negatives(labels, a)}
        if not near or not far:
            continue
        same = [j for j, label in enumerate(labels) if label == labels[a]]
        picked = {
            "hardest": [(0, max(near, key=near.get))],
            "easiest": [(0, min(near, key=near.get))],
            "random": [(0, list(near)[int(number(a, 1) * len(near))])],
            "all": [(j, p) for j, p in enumerate(same) if p != a],
        }[positive]
        for j, p in picked:
            if number(a, 0) < settings.get("random_fraction", 0.0):
                n = sorted(far)[int(number(a, 3 + 2 * j) * len(far))]
            else:
                n = negative_of_hardness(far, negative, settings, number(a, 2 + 2 * j))
            chosen.append((a, p, n))
    return chosen


def negative_of_hardness(
    far: Mapping[int, float], how: str, settings: Mapping[str, float], number: float
) -> int:
    ranked = sorted(far, key=far.get)
    last = len(ranked) - 1
    if how == "temperature":
        weights = {n: math.exp((far[ranked[0]] - d) / settings["temperature"]) for n, d in far.items()}
        return draw(weights, number)
    if how == "range":
        first = min(int(settings["skip"]), last)
        window = ranked[first : first + int(settings["width"])]
        return window[int(number * len(window))]
    if how == "quantile":
        return ranked[round((1 - settings["quantile"]) * last)]
    return ranked[min(int(settings["k"]) - 1 if how == "kth" else 0, last)]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(unit(a), unit(b), strict=True))


def soft_triple(
    embeddings: Rows,
    labels: Sequence[int],
    weight: Rows,
    centers_per_class: int,
    gamma: float | None = 0.1,
    tau: float = 0.2,
    la: float = 20.0,
    margin: float = 0.01,
) -> float:
    """SoftTriple; without a gamma the nearest center of each class counts (HardTriple)."""
    starts = range(0, len(weight), centers_per_class)
    classes = [weight[start : start + centers_per_class] for start in starts]

    def similarity(embedding: Sequence[float], centers: Rows) -> float:
        cosines = [cosine(embedding, center) for center in centers]
        if gamma is None:
            return max(cosines)
        shares = [math.exp(s / gamma) for s in cosines]
        return sum(share * s for share, s in zip(shares, cosines, strict=True)) / sum(shares)

    terms = []
    for embedding, label in zip(embeddings, labels, strict=True):
        logits = [la * similarity(embedding, centers) for centers in classes]
        logits[label] -= la * margin
        terms.append(math.log(sum(map(math.exp, logits))) - logits[label])
    spread = [
        distance(unit(a), unit(b)) for centers in classes for i, a in enumerate(centers) for b in centers[:i]
    ]
    regularizer = sum(spread) / (len(classes) * centers_per_class * max(1, centers_per_class - 1))
    return mean(terms) + tau * regularizer


def margin_softmax(
    embeddings: Rows, labels: Sequence[int], weight: Rows, scale: float, own: Callable[[float], float]
) -> float:
    """Cross entropy over classes, with own(angle) for the own class instead of the cosine."""
    terms = []
    for embedding, label in zip(embeddings, labels, strict=True):
        cosines = [cosine(embedding, vector) for vector in weight]
        # An arc cosine would round small angles away.
        cosines[label] = own(2 * math.asin(min(1.0, distance(unit(embedding), unit(weight[label])) / 2)))
        terms.append(math.log(sum(math.exp(scale * s) for s in cosines)) - scale * cosines[label])
    return mean(terms)


def arcface(
    embeddings: Rows, labels: Sequence[int], weight: Rows, degrees: float = 28.6, scale: float = 64
) -> float:
    margin = math.radians(degrees)

    def own(angle: float) -> float:
        beyond = angle + margin > math.pi
        return math.cos(angle) - margin * math.sin(margin) if beyond else math.cos(angle + margin)

    return margin_softmax(embeddings, labels, weight, scale, own)


def proxy_anchor(
    embeddings: Rows, labels: Sequence[int], proxies: Rows, margin: float = 0.1, alpha: float = 32.0
) -> float:
    pulls, pushes = [], []
    for label, proxy in enumerate(proxies):
        near = [cosine(row, proxy) for row, of_row in zip(embeddings, labels, strict=True) if of_row == label]
        far = [cosine(row, proxy) for row, of_row in zip(embeddings, labels, strict=True) if of_row != label]
        if near:
            pulls.append(math.log(1 + sum(math.exp(-alpha * (s - margin)) for s in near)))
        pushes.append(math.log(1 + sum(math.exp(alpha * (s + margin)) for s in far)))
    return mean(pulls) + mean(pushes)


def dot_product(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def nearness(a: Sequence[float], b: Sequence[float]) -> float:
    """The euclidean distance as a similarity."""
    return -distance(a, b)


Similarity = Callable[[Sequence[float], Sequence[float]], float]


def similarities(
    embeddings: Rows, labels: Sequence[int], anchor: int, similarity: Similarity
) -> tuple[list[float], list[float]]:
    """Those of an anchor's positives, and of its negatives."""
    return (
        [similarity(embeddings[anchor], embeddings[p]) for p in positives(labels, anchor)],
        [similarity(embeddings[anchor], embeddings[n]) for n in negatives(labels, anchor)],
    )


def multi_similarity(
    embeddings: Rows,
    labels: Sequence[int],
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = None,
    similarity: Similarity = cosine,
) -> float:
    terms = []
    for a in range(len(labels)):
        near, far = similarities(embeddings, labels, a, similarity)
        if epsilon is not None:
            hardest_negative, hardest_positive = max(far, default=-math.inf), min(near, default=math.inf)
            near = [s for s in near if s < hardest_negative + epsilon]
            far = [s for s in far if s > hardest_positive - epsilon]
        pull = math.log1p(sum(math.exp(-alpha * (s - base)) for s in near)) / alpha
        push = math.log1p(sum(math.exp(beta * (s - base)) for s in far)) / beta
        terms.append(pull + push)
    return mean(terms)


def supcon(
    embeddings: Rows,
    labels: Sequence[int],
    temperature: float = 0.1,
    similarity: Similarity = cosine,
    nonzero: bool = True,
) -> float:
    terms = []
    for a in range(len(labels)):
        near, far = similarities(embeddings, labels, a, similarity)
        if near and far:
            everyone = sum(math.exp(s / temperature) for s in near + far)
            terms.append(-mean([math.log(math.exp(s / temperature) / everyone) for s in near]))
    return nonzero_mean(terms) if nonzero else mean(terms)


def ntxent(
    embeddings: Rows, labels: Sequence[int], temperature: float = 0.07, similarity: Similarity = cosine
) -> float:
    terms = []
    for a in range(len(labels)):
        near, far = similarities(embeddings, labels, a, similarity)
        others = sum(math.exp(s / temperature) for s in far)
        terms += [math.log1p(others / math.exp(s / temperature)) for s in near]
    return mean(terms)


def circle(embeddings: Rows, labels: Sequence[int], m: float = 0.4, gamma: float = 80.0) -> float:
    terms = []
    for a in range(len(labels)):
        near, far = similarities(embeddings, labels, a, cosine)
        if near and far:
            pull = sum(math.exp(-gamma * max(0.0, 1 + m - s) * (s - (1 - m))) for s in near)
            push = sum(math.exp(gamma * max(0.0, s + m) * (s - m)) for s in far)
            terms.append(math.log1p(pull * push))
    return mean(terms)


def n_pairs(embeddings: Rows, labels: Sequence[int], similarity: Similarity = cosine) -> float:
    """The first two rows of every class that has two: logits of all such anchors with all such positives."""
    pairs = []
    for label in set(labels):
        rows = [i for i in range(len(labels)) if labels[i] == label]
        if len(rows) > 1:
            pairs.append((embeddings[rows[0]], embeddings[rows[1]]))
    terms = []
    for anchor, positive in pairs:
        logits = [similarity(anchor, other) for _, other in pairs]
        terms.append(math.log(sum(math.exp(s - similarity(anchor, positive)) for s in logits)))
    return mean(terms)


def centroid_bound(
    embeddings: Rows, labels: Sequence[int], centroids: Rows, counts: Sequence[int] | None = None
) -> float:
    """Mean over images of pull minus pushes; `counts` are those of the data set, for weights of unbalanced classes."""
    classes = range(len(centroids))
    n = [2] * len(centroids) if counts is None else counts
    images = sum(n)
    triplets = sum(n[m] * (n[m] - 1) * (images - n[m]) for m in classes)
    terms = []
    for x, y in zip(embeddings, labels, strict=True):
        others = [m for m in classes if m != y]
        # As anchor and as positive, and as negative.
        pull = 2 * (n[y] - 1) * (images - n[y]) + sum(n[m] * (n[m] - 1) for m in others)
        pushes = sum((n[y] - 1) * n[m] * distance(x, centroids[m]) for m in others)
        terms.append((pull * distance(x, centroids[y]) - pushes) * images / (3 * triplets))
    return mean(terms)


def triplet_gaps(embeddings: Rows, labels: Sequence[int]) -> list[float]:
    """How much farther than its negative the positive of every triplet is."""
    return [
        distance(embeddings[a], embeddings[p]) - distance(embeddings[a], embeddings[n])
        for a, p, n in triplets(labels)
    ]


def triplet_gap_bounds(embeddings: Rows, labels: Sequence[int], centroids: Rows) -> list[float]:
    """The same, with the pull led through the own class's centroid and the push through the negative's."""
    return [
        distance(embeddings[a], centroids[labels[a]])
        + distance(embeddings[p], centroids[labels[a]])
        - distance(embeddings[a], centroids[labels[n]])
        + distance(embeddings[n], centroids[labels[n]])
        for a, p, n in triplets(labels)
    ]
