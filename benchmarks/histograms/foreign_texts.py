"""Odd English that no public package had: written for the measurement, a few paragraphs each."""

from __future__ import annotations

WRITTEN: dict[str, list[str]] = {
    "recipes": [
        "2 cups flour\n1 tsp baking powder\n1/2 tsp salt\n3 tbsp butter, softened\n2 eggs\n3/4 cup milk\n1 tsp "
        "vanilla\n"
        "Whisk flour, baking powder, salt. Beat butter and eggs. Fold in. Bake 25 min at 350 F.",
        "500 g potatoes, peeled, diced\n1 onion, chopped\n2 cloves garlic\n1 l stock\n100 ml cream\nparsley, nutmeg, "
        "pepper\nSweat onion and garlic. Add potatoes and stock. Simmer 20 min. Blend. Stir in cream.",
        "1 lb ground beef\n1 can kidney beans, drained\n1 can diced tomatoes\n2 tsp cumin\n1 tbsp chili powder\n1 "
        "green "
        "pepper\nBrown beef. Add the rest. Simmer 1 hr, stirring now and then. Serve with sour cream and rice.",
        "4 salmon fillets, skin on\n2 lemons\n3 tbsp olive oil\ndill, capers, sea salt\nHeat oven to 400 F. Lay "
        "fillets "
        "skin side down. Drizzle, season, top with lemon slices. Roast 12 to 14 min until flaky.",
    ],
    "tables": [
        "station,date,rain mm,wind m/s,high C,low C\nHarbour,2019-03-01,4.2,7.1,9,3\nHarbour,2019-03-02,0.0,3.4,11,4\n"
        "Airport,2019-03-01,5.9,9.8,8,2\nAirport,2019-03-02,0.1,4.0,10,3\nHill,2019-03-01,11.3,14.2,5,-1\n"
        "Hill,2019-03-02,0.4,6.6,7,0\nLake,2019-03-01,3.8,5.2,8,2",
        "region\tunits\trevenue\tcost\tmargin\nNorth\t1204\t88,410\t61,002\t31.0%\nSouth\t977\t70,288\t52,400\t25.4%\n"
        "East\t1560\t119,340\t80,911\t32.2%\nWest\t402\t30,552\t29,870\t2.2%\nTotal\t4143\t308,590\t224,183\t27.4%",
        "rank,name,team,games,goals,assists,points\n1,Miller,Blue,82,51,60,111\n2,Olsen,Red,80,44,63,107\n"
        "3,Baker,Green,78,39,58,97\n4,Clark,Blue,82,35,55,90\n5,Young,Gold,74,40,41,81\n6,Hughes,Red,69,33,40,73",
        "sample | weight (g) | pH | result\n1 | 0.512 | 6.8 | pass\n2 | 0.498 | 7.1 | pass\n3 | 0.731 | 5.2 | fail\n"
        "4 | 0.505 | 6.9 | pass\n5 | 0.489 | 8.4 | fail\n6 | 0.501 | 7.0 | pass\nmean | 0.539 | 6.9 |",
    ],
    "verse": [
        "O wind that walks the barren hill,\nAnd bends the thistle to the stone,\nThou findest me, as ever, still\n"
        "Beside a hearth that burns alone.\n\nThe rooks have gone, the brook runs low,\nThe lane is white with "
        "early rime;\n"
        "What tidings bring'st thou through the snow\nOf her who went at harvest time?",
        "Sing, cuckoo, sing the meadow green,\nThe hawthorn and the clover,\nFor he that kissed me yestere'en\n"
        "Is sailing off to Dover.\nHeigh-ho, the tide, the merry tide,\nThat bears my lad so lightly;\n"
        "I'll spin and weep and be his bride\nWhen stars shine out more brightly.",
        "Two lanterns on the harbour wall,\none for the drowned, one for the late.\nI learned to read by the "
        "smaller one.\n"
        "My father mended nets with a needle of bone\nand never once looked up at the sea,\n"
        "as if it were a neighbour he owed money to.",
    ],
    "chat": [
        "lol u still up??\nyeah cant sleep smh\nsame. wanna play smth\nnah im on my phone rn, laptops dead\nomg "
        "again?? "
        "ur so bad w chargers haha\nikr :( brb getting water\nk",
        "yo did u see the game last nite\nbruh that ref was blind fr\nnot even close to offside imo\nidk tbh i only "
        "watched the 2nd half\nu missed a banger then\ngonna watch highlights l8r, gtg class starts in 5",
        "hey r we still on for sat?\nya! bringing the kids tho hope thats ok\nofc!! mine will be thrilled\nwhat time "
        "works\n11ish? gotta drop off the dog first\nkk cya then xx",
        "anyone know why my build is failing??\npost the log pls\nsays cant find module, tried reinstalling 2x\ndid u "
        "activate the venv lol\n...\nomg im an idiot ty\nnp happens to all of us",
    ],
    "server log": [
        "2024-05-11 03:12:44 INFO worker[3] job 8841 started, queue=default\n2024-05-11 03:12:47 WARN retry 1/5 after "
        "timeout: connection refused (host=10.0.3.17 port=5432)\n2024-05-11 03:12:52 WARN retry 2/5 after timeout\n"
        "2024-05-11 03:13:02 ERROR job 8841 failed: could not connect to server\n2024-05-11 03:13:02 INFO "
        "worker[3] idle",
        '192.168.0.14 - - [02/Feb/2023:10:15:32 +0000] "GET /index.html HTTP/1.1" 200 5120 "-" "Mozilla/5.0"\n'
        '192.168.0.22 - admin [02/Feb/2023:10:15:40 +0000] "POST /login HTTP/1.1" 302 0 "-" "curl/7.88"\n'
        '192.168.0.14 - - [02/Feb/2023:10:16:01 +0000] "GET /missing.png HTTP/1.1" 404 153 "-" "Mozilla/5.0"',
        "kernel: usb 2-1: new high-speed USB device number 7 using xhci_hcd\nkernel: usb 2-1: device descriptor read, "
        "error -71\nsystemd[1]: Starting daily cleanup of temporary directories...\nsystemd[1]: Finished daily "
        "cleanup.\n"
        "sshd[2210]: Accepted publickey for backup from 10.1.1.4 port 51514 ssh2",
    ],
}
"""Examples by kind."""
