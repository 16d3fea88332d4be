"""Common words for what pictures show, by which clusters are named."""

_WORDS = """
people, portrait, selfie, baby, children, family, crowd, wedding, birthday party, concert, dancing, graduation, friends
hands, face, hair, clothes, shoes, jewellery, tattoo
cat, dog, puppy, kitten, horse, cow, sheep, goat, pig, chicken, duck, bird, eagle, owl, parrot, fish, shark, whale
insect, butterfly, bee, spider, snake, frog, turtle, lizard, rabbit, mouse, squirrel, deer, bear, lion, tiger, elephant
monkey, giraffe, zebra, dinosaur
beach, sea, ocean, waves, lake, river, waterfall, mountain, hill, forest, tree, autumn leaves, field, meadow, garden
park, desert, cave, island, snow, ice, rain, fog, clouds, sky, sunset, sunrise, night sky, moon, stars, fireworks
rainbow, lightning, volcano, countryside, landscape
flower, rose, tulip, sunflower, cactus, mushroom, grass, plant
city, street, skyline, skyscraper, house, castle, church, temple, mosque, tower, bridge, ruins, monument, statue, market
shop, restaurant, bar, hotel, school, library, museum, hospital, factory, farm, stadium, playground, harbour, airport
station, tunnel, stairs, door, window, roof, swimming pool
kitchen, bedroom, bathroom, living room, office, classroom, furniture, chair, table, bed, lamp, mirror, clock, candle
car, truck, bus, motorcycle, bicycle, train, tram, aeroplane, helicopter, boat, ship, sailing boat, rocket, traffic
road, railway
food, bread, cake, pizza, burger, pasta, noodles, rice, soup, salad, sandwich, sushi, meat, cheese, eggs, dessert
chocolate, ice cream, breakfast, fruit, apple, pear, banana, orange, lemon, grapes, strawberries, berries, melon, peach
mango, pineapple, avocado, tomato, potato, onion, pepper, carrot, cucumber, cabbage, aubergine, vegetables, mushrooms
coffee, tea, juice, milk, yoghurt, cream, beer, wine, cocktail, bottle, glass, cup, plate, packaging
sports, football, basketball, tennis, golf, baseball, running, cycling, skiing, snowboarding, surfing, climbing, hiking
camping, fishing, yoga, gymnastics, boxing, skateboarding
book, newspaper, document, receipt, handwriting, map, chart, diagram, screenshot, website, poster, sign, logo, flag
text, menu, ticket, barcode, money
computer, keyboard, phone, camera, television, headphones, robot, machine, tool, engine, wires, screen
guitar, piano, violin, drums, microphone, stage
painting, drawing, sketch, cartoon, comic, sculpture, graffiti, pattern, texture, abstract art, icon, emoji, map pin
toy, doll, teddy bear, game, chess, balloon, gift, box, bag, umbrella, hat, glasses, mask, costume
heart, star shape, circle, square, triangle, diamond shape, cross, ring, arrow, smiley
red, orange colour, yellow, green, blue, purple, pink, brown, grey, black and white
close-up, aerial view, silhouette, reflection, shadow, blurred picture, dark picture
"""
COMMON_WORDS = tuple(dict.fromkeys(word.strip() for word in _WORDS.replace("\n", ",").split(",") if word.strip()))
