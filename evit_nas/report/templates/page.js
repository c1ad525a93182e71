// The page can be read without this: tips are titles then, and commands are selected by a click.

function offerCopy(box) {
  const text = box.firstElementChild;
  const made = box.appendChild(document.createElement("button"));
  made.type = "button";
  made.textContent = "copy";
  made.addEventListener("click", async () => {
    made.textContent = (await copied(text)) ? "copied" : "selected";
    setTimeout(() => (made.textContent = "copy"), 1500);
  });
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text.textContent);
    return true;
  } catch { // not a secure context, or no leave: select it, which leaves Ctrl-C where the old way is shut as well
    getSelection().selectAllChildren(text);
    return document.execCommand("copy");
  }
}

const tip = document.body.appendChild(document.createElement("div"));
tip.className = "tip";
let marked = null;

function show(mark) {
  if (mark === marked) return;
  marked?.classList.remove("near");
  marked = mark;
  tip.hidden = !mark;
  if (!mark) return;
  mark.classList.add("near");
  tip.textContent = mark.getAttribute("aria-label");
  const { left, right, top, bottom } = mark.getBoundingClientRect();
  const above = top - tip.offsetHeight - 8;
  const centred = (left + right - tip.offsetWidth) / 2;
  tip.style.left = `${Math.max(8, Math.min(centred, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${above > 8 ? above : bottom + 8}px`;
}

function nearest(marks, x, y) {
  let found = null;
  let least = 16;
  for (const mark of marks) {
    const box = mark.getBoundingClientRect();
    if (!box.width) continue; // hidden
    const beside = Math.hypot(Math.max(box.left - x, 0, x - box.right), Math.max(box.top - y, 0, y - box.bottom));
    const off = beside + Math.hypot(x - (box.left + box.right) / 2, y - (box.top + box.bottom) / 2) / 100;
    if (off < least) [found, least] = [mark, off];
  }
  return found;
}

function explain(canvas) {
  const marks = [...canvas.querySelectorAll("title")].map((title) => {
    const mark = title.parentNode;
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", title.textContent);
    title.remove(); // else the browser shows it as well, a second later
    return mark;
  });
  const point = (event) => show(nearest(marks, event.clientX, event.clientY));
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", () => show(null));
  canvas.addEventListener("focusin", (event) => show(event.target.querySelector("[aria-label]")));
  canvas.addEventListener("focusout", () => show(null));
}

document.querySelectorAll(".command").forEach(offerCopy);
document.querySelectorAll(".canvas").forEach(explain);
tip.hidden = true;
addEventListener("scroll", () => show(null), { passive: true });
