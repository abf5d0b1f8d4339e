"use strict";

const make = (name, text, parent) => {
  const element = document.createElement(name);
  element.textContent = text;
  if (parent) parent.append(element);
  return element;
};

// Show of some elements only those that hold every word of a search; say how many are left.
const addFilter = (parent, before, elements, what) => {
  const tools = make("div", "");
  tools.className = "tools";
  const label = make("label", "", tools);
  const search = make("input", "", label);
  search.type = "search";
  search.placeholder = "filter " + what;
  search.setAttribute("aria-label", "filter " + what);
  const left = make("span", "", tools);
  left.setAttribute("role", "status");
  const texts = elements.map((element) => element.textContent.toLowerCase());
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/);
    let shown = 0;
    elements.forEach((element, place) => {
      element.hidden = !words.every((word) => texts[place].includes(word));
      shown += element.hidden ? 0 : 1;
    });
    left.textContent = search.value ? `${shown} of ${elements.length}` : "";
  });
  parent.insertBefore(tools, before);
  return tools;
};

const valueOf = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.number === undefined ? cell.textContent : Number(cell.dataset.number);
};

const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));

// Numbers are sorted from the largest at first, words from the first letter.
const sortBy = (table, header) => {
  const column = header.cellIndex;
  const first = header.classList.contains("number") ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? other : first;
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => sign * compare(valueOf(a, column), valueOf(b, column)));
  table.tBodies[0].append(...rows);
};

for (const table of document.querySelectorAll("table")) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 4) continue;
  for (const header of table.tHead.rows[0].cells) {
    const button = make("button", header.textContent);
    header.replaceChildren(button);
    button.addEventListener("click", () => sortBy(table, header));
  }
  const region = table.parentElement;
  if (rows.length > 7) addFilter(region.parentElement, region, rows, "rows");
}

// White space as marks, without a second copy of the text in the page.
const MARKS = { " ": "·", "\t": "→\t", "\n": "⏎\n" };
const markWhiteSpace = (isMarked) => {
  for (const token of document.querySelectorAll(".row .tokens i, .row .tokens b, .row .tokens u")) {
    if (isMarked) {
      token.dataset.text = token.textContent;
      token.textContent = token.textContent.replace(/[ \t\n]/g, (character) => MARKS[character]);
    } else {
      token.textContent = token.dataset.text;
    }
  }
};

for (const section of document.querySelectorAll("[data-cards]")) {
  const cards = [...section.querySelectorAll("details")];
  if (!cards.length) continue;
  const tools = addFilter(section, cards[0], cards, "rows");
  const addSwitch = (name, change) => {
    const button = make("button", name, tools);
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const isOn = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(isOn));
      change(isOn);
    });
    return button;
  };
  const whiteSpace = addSwitch("show white space", markWhiteSpace);
  if ("marksWhitespace" in section.dataset) whiteSpace.click();
  addSwitch("open all", (isOn) => cards.forEach((card) => { card.open = isOn; }));
}

// A row opens where its continuation begins.
for (const card of document.querySelectorAll("details.row")) {
  const showBoundary = () => {
    const tokens = card.querySelector(".tokens");
    const boundary = card.querySelector("mark");
    tokens.scrollTop += boundary.getBoundingClientRect().top - tokens.getBoundingClientRect().top - tokens.clientHeight / 2;
  };
  card.addEventListener("toggle", showBoundary);
  if (card.open) showBoundary();
}

// What is folded would be missing on paper.
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
});
