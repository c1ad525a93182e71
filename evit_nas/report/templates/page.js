// Plotly knows no CSS variables: the charts carry them as text, and are painted with the theme's values.
const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const config = {
  responsive: true,
  displaylogo: false,
  showSendToCloud: false, // on by default: nothing of this page goes anywhere
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};

function painted(value, style) {
  if (typeof value === "string") return value.replace(/var\((--[a-z]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  if (Array.isArray(value)) return value.map((item) => painted(item, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, painted(item, style)]));
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const [place, chart] of Object.entries(charts)) {
    const { data, layout } = painted(chart, style);
    Plotly.react(place, data, layout, config);
  }
}

async function copy(button) {
  const yaml = button.nextElementSibling;
  try {
    await navigator.clipboard.writeText(yaml.textContent);
    button.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(yaml); // without leave to write to the clipboard: ready for Ctrl-C
    button.textContent = "selected";
  }
  setTimeout(() => (button.textContent = "copy"), 1500);
}

document.querySelectorAll(".yaml button").forEach((button) => button.addEventListener("click", () => copy(button)));
dark.addEventListener("change", draw);
draw();
