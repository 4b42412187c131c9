// The card: what is known of a box. Texts of the circuit enter the page as text, never as markup.

/** An element with attributes and children, texts among them. */
function el(tag, attributes, ...children) {
  const found = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "onclick") found.addEventListener("click", value);
    else if (value !== undefined && value !== null && value !== false) found.setAttribute(key, value);
  }
  found.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return found;
}

function percent(share) {
  if (share > 0 && share < 0.001) return "<0.1%";
  return share >= 0.0995 || !share ? `${Math.round(100 * share)}%` : `${(100 * share).toFixed(1)}%`;
}

const word = (position) => (data.tokens[position] || "").trim();
const layers = (low, top) => (low === top ? `layer ${low}` : `layers ${low} to ${top}`);

/** What kind of thing a box is, and where it stands. */
function where(nodes, n) {
  const role = nodes.role[n];
  const places = nodes.positions[n];
  const at = places.length === 1 ? word(places[0]) : "";
  const count = nodes.members[n].length;
  const kind = role !== "rest" ? "feature" : places.length ? "error" : "remainder";
  const parts =
    role === "word" ? [`${places.length > 1 ? `${places.length} words` : `word ${places[0] + 1}`} of the prompt`]
    : role === "output" ? [count > 1 ? `${count} outputs` : "output", nodes.chance[n] === null ? "" : `which the model finds ${percent(nodes.chance[n])} likely`]
    : [count > 1 ? `concept of ${count} ${kind}s` : kind, nodes.key[n] || "", layers(nodes.low[n], nodes.top[n])];
  const text = parts.filter(Boolean).join(", ");
  if (role !== "word" && places.length > 1) return [`${text}, at ${places.length} words`];
  return role !== "word" && at ? [text, ", at ", el("bdi", {}, `“${at}”`)] : [text];
}

/** A row with a bar as long as its share. */
function barred(share, sign, ...content) {
  const bar = el("span", { class: `bar ${sign}`, "aria-hidden": "true" });
  bar.style.width = `${Math.min(100, 100 * share)}%`;
  return el("li", { class: "barred" }, bar, ...content, el("span", { class: "share" }, percent(share)));
}

/** The edges at one end of a box, strongest first, each leading to its other end. */
function neighbours(view, n, own, other, [title, explained], goTo) {
  const { direct, weight } = view.edges;
  const edges = [...direct.keys()].filter((e) => view.edges[own][e] === n).sort((a, b) => direct[b] - direct[a]);
  if (!edges.length) return null;
  const entry = (e) => {
    const far = view.edges[other][e];
    const button = el("button", { type: "button", class: "link", dir: "auto", onclick: () => goTo(far) }, view.nodes.label[far]);
    const place = view.nodes.role[far] === "word" ? "word" : view.nodes.role[far] === "output" ? "output" : layers(view.nodes.low[far], view.nodes.top[far]);
    return barred(direct[e], weight[e] >= 0 ? "plus" : "minus", button, el("span", { class: "muted small" }, place));
  };
  const list = el("ul", { class: "bars" }, ...edges.slice(0, 12).map(entry));
  const rest = 1 - edges.reduce((sum, e) => sum + direct[e], 0);
  if (own === "target" && rest > 0.005) {
    list.append(el("li", { class: "barred muted" }, el("span", {}, view.nodes.members[n].length > 1 ? "from within itself, or pruned" : "pruned"), el("span", { class: "share" }, percent(rest))));
  }
  const more = edges.length > 12 ? el("p", { class: "muted small" }, `and ${edges.length - 12} weaker`) : null;
  return el("section", {}, el("h3", {}, title, " ", el("span", { class: "muted small" }, explained)), list, more);
}

/** Tokens with how much each is moved. */
function tokens(title, pairs) {
  if (!pairs || !pairs.length) return null;
  const chips = pairs.map(([token, value]) => el("span", { class: "chip", dir: "auto", title: value === null ? null : String(value) }, token.trim() || JSON.stringify(token)));
  return el("div", { class: "tokens" }, el("h4", {}, title), ...chips);
}

/** A context with the strongest token marked. */
function context(entry) {
  const line = el("li", { dir: "auto" });
  entry.tokens.forEach((token, n) => {
    const text = /^\s/.test(token) || n === 0 ? token : data.spaced ? ` ${token}` : token;
    if (n !== entry.at) line.append(text);
    else line.append(/^\s/.test(text) ? " " : "", el("mark", {}, text.trim() || text));
  });
  line.append(el("span", { class: "muted small" }, ` ${entry.activation}`));
  return line;
}

/** Activations as bars, by root of the count: the strong ones are few. */
function histogram(known) {
  const bins = known.histogram;
  if (!bins || !bins.counts || !bins.counts.length) return null;
  const most = Math.sqrt(Math.max(...bins.counts, 1));
  const columns = bins.counts.map((count) => {
    const bar = el("span", { title: `${count}` });
    bar.style.height = `${Math.max(count ? 4 : 0, (100 * Math.sqrt(count)) / most)}%`;
    return bar;
  });
  const ends = bins.ends;
  const label = `Activations from ${ends[0]} to ${ends[1]}, as the root of their counts`;
  return el("figure", { class: "histogram" }, el("div", { role: "img", "aria-label": label }, ...columns),
    el("figcaption", { class: "muted small" }, `${ends[0]}`, el("span", {}, "activation"), `${ends[1]}`));
}

/** All evidence of one feature. */
function evidence(key) {
  const known = data.evidence[key];
  if (!known) return null;
  const contexts = (known.contexts || []).map(context);
  const density = known.density === undefined ? null : `active on ${(100 * known.density).toPrecision(2)}% of the words`;
  return el("div", { class: "evidence" },
    contexts.length ? el("h4", {}, "Strongest at") : null,
    contexts.length ? el("ol", { class: "contexts" }, ...contexts) : null,
    tokens("Active for, by share of its activation", (known.names || []).map(([name, share]) => [`${name} ${percent(share)}`, null])),
    tokens("Promotes", known.promotes), tokens("Suppresses", known.suppresses),
    tokens("Promotes through attention", known.promotes_through_attention),
    histogram(known), density ? el("p", { class: "muted small" }, density) : null);
}

/** The members of a concept, each with its own evidence. */
function members(n) {
  const view = data.views.concepts;
  const single = data.views.features.nodes;
  const own = view.nodes.members[n];
  if (own.length < 2) return null;
  const whole = own.reduce((sum, m) => sum + single.influence[m], 0) || 1;
  const entries = own.slice().sort((a, b) => single.influence[b] - single.influence[a]).map((m, rank) => {
    const name = single.key[m] || single.label[m];
    const share = el("span", { class: "share" }, percent(single.influence[m] / whole));
    const known = single.key[m] ? evidence(single.key[m]) : null;
    const place = el("span", { class: "muted small", dir: "auto" }, word(single.positions[m][0]));
    if (!known) return el("li", { class: "member" }, name, " ", place, share);
    return el("li", { class: "member" }, el("details", { open: rank === 0 && "" }, el("summary", {}, name, " ", place, share), known));
  });
  return el("section", {}, el("h3", {}, "Members"), el("ul", { class: "members" }, ...entries));
}

const METHODS = {
  label: "by the same label", promotes: "by the tokens promoted", profile: "by like attribution profiles",
  position: "errors at one word", hand: "by hand",
};

/** The card of one box. */
function card(view, n, hidden, goTo) {
  const { nodes } = view;
  const grouped = nodes.members[n].length > 1;
  const facts = [`${percent(nodes.through[n])} of the influence runs through it`];
  if (nodes.activation[n] !== null) facts.push(`activation ${nodes.activation[n]}`);
  if (grouped && nodes.positions[n].length) facts.push(`grouped ${METHODS[nodes.method[n]] || nodes.method[n]}`, `cohesion ${nodes.cohesion[n].toFixed(2)}`);
  if (nodes.pinned[n]) facts.push("pinned");
  if (hidden) facts.push("shown although the sliders leave it out");
  const rest = nodes.role[n] === "rest" ? el("p", {}, "The part of what the model computed here that its features do not reproduce, or that was not expanded.") : null;
  return [
    el("h2", { dir: "auto" }, nodes.label[n]), el("p", { class: "muted" }, ...where(nodes, n)),
    el("p", { class: "facts" }, facts.join(" · ")), rest,
    neighbours(view, n, "target", "source", ["What feeds it", "by share of what it reads"], goTo),
    neighbours(view, n, "source", "target", ["What it feeds", "by share of what that reads"], goTo),
    nodes.key[n] && data.evidence[nodes.key[n]] ? el("section", {}, el("h3", {}, "Evidence"), evidence(nodes.key[n])) : null,
    view === data.views.concepts ? members(n) : null,
  ].filter(Boolean);
}

/** The card while nothing is selected. */
function overview() {
  return [
    el("h2", {}, "Reading this picture"),
    el("p", {}, "Words stand along the bottom, layers rise above them, outputs are at the top. A line says who contributed to whom, as thick as its share of the influence."),
    el("p", {}, "A double box is a concept of several features; it stands at the layer by which half of it has come together. Small squares are weak features, or, in grey, what no feature explains."),
    el("p", {}, "Point at a box to see what feeds it; click to keep its card."),
    el("p", {}, "Attention is taken as it was on this prompt: the picture says what moved, not why the model attended as it did. It is a hypothesis: intervene on what it names, and look."),
  ];
}
