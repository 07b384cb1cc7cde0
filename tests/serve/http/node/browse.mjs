// The landing page in Chromium: node browse.mjs URL SCREENSHOT BROWSER [STEPS]. Steps are JSON: arrays to choose, and
// slider positions. Prints what the picture shows after each, and what went wrong.
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [url, screenshot, browser, steps = "[]"] = process.argv.slice(2);
// Of what that package proposes, nothing that loosens the rules for pages.
const args = chromium.args.filter((argument) => !/web-security|insecure|isolat/.test(argument));
const running = await puppeteer.launch({
  args: browser ? ["--no-sandbox"] : args,
  executablePath: browser || (await chromium.executablePath()),
  headless: browser ? true : "shell",
  defaultViewport: { width: 1000, height: 1200 },
});
try {
  const page = await running.newPage();
  const trouble = [];
  const hosts = new Set();
  page.on("console", (message) => message.type() === "error" && trouble.push(message.text()));
  page.on("pageerror", (error) => trouble.push(error.message));
  page.on("dialog", (dialog) => (trouble.push(`dialog ${dialog.message()}`), dialog.dismiss()));
  page.on("request", (request) => hosts.add(new URL(request.url()).host));
  await page.goto(url);
  const shown = [];
  const look = async () => {
    await page.waitForFunction(() => ["drawn", "failed"].includes(document.querySelector("#picture").dataset.state), { timeout: 20000 });
    const seen = await page.$eval("#picture", (picture) => {
      const pixels = picture.getContext("2d").getImageData(0, 0, picture.width, picture.height).data;
      const colours = new Set();
      for (let at = 0; at < pixels.length; at += 4) colours.add(pixels.slice(at, at + 4).join());
      return { ...picture.dataset, width: picture.width, height: picture.height, colours: colours.size, label: picture.ariaLabel };
    });
    shown.push({ ...seen, legend: await page.$eval("#legend", (legend) => legend.textContent), hash: new URL(page.url()).hash });
  };
  await look();
  for (const { choose, slide } of JSON.parse(steps)) {
    await page.$eval("#picture", (picture) => (picture.dataset.state = ""));
    if (choose) await page.select("#array", choose);
    if (slide !== undefined) {
      await page.$eval("#sliders input", (input, at) => {
        input.value = at;
        input.dispatchEvent(new Event("input"));
      }, slide);
    }
    await look();
  }
  await page.screenshot({ path: screenshot, fullPage: true });
  const elements = await page.evaluate(() => ({
    scripts: document.scripts.length,
    images: document.images.length,
    unlabelled: [...document.querySelectorAll("input, select")].filter((input) => !input.labels.length).length,
    wide: document.documentElement.scrollWidth > window.innerWidth,
  }));
  console.log(JSON.stringify({ shown, trouble, hosts: [...hosts], elements, title: await page.title() }));
} finally {
  await running.close();
}
