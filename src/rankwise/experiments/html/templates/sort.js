"use strict";
// Tables are sorted by the buttons in their heads; without this script they are read as they are.
const makeSortable = (root) => {
  for (const head of root.querySelectorAll("table.sortable th")) {
    if (head.querySelector("button")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
  }
};
const keyOf = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.key ?? cell.textContent;
  const number = Number(text.replace("inf", "Infinity"));
  return text === "" || Number.isNaN(number) ? text : number;
};
const compare = (one, other) => {
  if (one === "" || other === "") return (one === "") - (other === "");
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
};
document.addEventListener("click", (event) => {
  const head = event.target.closest("table.sortable th");
  if (!head) return;
  const down = head.getAttribute("aria-sort") === "ascending";
  const body = head.closest("table").tBodies[0];
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].map((row) => [keyOf(row, head.cellIndex), row]);
  rows.sort(([one], [other]) => (down ? -1 : 1) * compare(one, other));
  body.append(...rows.map(([, row]) => row));
});
makeSortable(document);
