"use strict";
// Asks for the page's version now and then; when it changed, what changed is replaced and the reader stays in place.
{
  const EVERY = 4000;
  const said = document.getElementById("live");
  const button = document.getElementById("pause");
  let version = document.body.dataset.version;
  let paused = false;
  const pathOf = (element) => {
    const steps = [];
    for (; element && element !== document.body && !element.id; element = element.parentElement) {
      steps.unshift([...element.parentElement.children].indexOf(element));
    }
    return { id: element?.id, steps };
  };
  const follow = (path) => path.steps.reduce((at, i) => at?.children[i], document.getElementById(path.id));
  const replacePage = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const open = [...document.querySelectorAll("details[open]")].map((one) => one.id);
    const focus = pathOf(document.activeElement);
    for (const id of ["title", "progress", "notes", "main"]) document.getElementById(id).replaceWith(fresh.getElementById(id));
    document.querySelector("nav").replaceWith(fresh.querySelector("nav"));
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    document.title = fresh.title;
    makeSortable(document);
    if (focus.id) follow(focus)?.focus({ preventScroll: true });
  };
  const look = async () => {
    if (paused) return;
    try {
      const now = await (await fetch("version", { cache: "no-store" })).json();
      if (now.version !== version) {
        const answer = await fetch("./", { cache: "no-store" });
        if (!answer.ok) throw new Error(await answer.text());
        replacePage(await answer.text());
        version = now.version;
      }
      said.textContent = now.problem ? `Live, but: ${now.problem}` : "Live: this page follows the store.";
    } catch (error) {
      said.textContent = "The dashboard does not answer; the page shows what was there last.";
    }
  };
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Go on" : "Pause";
    said.textContent = paused ? "Paused." : "Live: this page follows the store.";
  });
  const follow_on = async () => {
    await look();
    setTimeout(follow_on, EVERY);
  };
  follow_on();
}
