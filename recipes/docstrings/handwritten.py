"""Functions written one by one, with their docstrings. make_data.py reads this file as text; it is never imported.

The style of the code varies on purpose, and names of other modules are not defined.
"""


# ruff: noqa
# fmt: off
def knots_from_kmh(kmh):
    """Convert kilometers per hour to knots.

    Args:
        kmh: The speed in kilometers per hour.

    Returns:
        The speed in knots.
    """
    return kmh / 1.852

def bake_order(cakes, oven_slots):
    """Split the cakes into batches for the oven.

    Args:
        cakes: The cakes to bake.
        oven_slots: The number of cakes that fit at once.

    Returns:
        A list of batches.

    Raises:
        ValueError: If oven_slots is less than 1.
    """
    if oven_slots < 1:
        raise ValueError("the oven needs at least one slot")
    return [cakes[i:i + oven_slots] for i in range(0, len(cakes), oven_slots)]

def season_of(month: int) -> str:
    """Return the season of a month in the north.

    Args:
        month: The month from 1 to 12.

    Returns:
        The name of the season.
    """
    if month in (12, 1, 2):
        return "winter"
    return ("spring", "summer", "fall")[month // 3 - 1]

def ring_bell(self):
    """Play the sound of the bell once."""
    self.speaker.play("bell.wav")
    self.rings += 1

def withdraw_coins(self, amount):
    """Take coins out of the purse.

    Args:
        amount: The number of coins to take.

    Returns:
        The number of coins that are left.

    Raises:
        ValueError: If there are not enough coins.
    """
    if amount > self.coins:
        raise ValueError("not enough coins")
    self.coins -= amount
    return self.coins

def longest_word(sentence: str) -> str:
    """Find the longest word of a sentence.

    Args:
        sentence: The sentence to search.

    Returns:
        The longest word, or an empty string.
    """
    words = sentence.split()
    if not words:
        return ""
    return max(words, key=len)

def plant_rows(garden, seed, spacing=30):
    """Plant a seed in each row of the garden.

    Args:
        garden: The garden to plant.
        seed: The seed to use.
        spacing: The distance between plants in centimeters.
    """
    for row in garden.rows:
        for position in range(0, row.length, spacing):
            row.put(seed, position)

async def fetch_forecast(client, city: str) -> dict:
    """Fetch the weather forecast of a city.

    Args:
        client: The HTTP client.
        city: The name of the city.

    Returns:
        The forecast as a dictionary.

    Raises:
        WeatherError: If the service does not answer with status 200.
    """
    response = await client.get(f"/forecast/{city}")
    if response.status != 200:
        raise WeatherError(f"no forecast for {city}")
    return await response.json()

def roman_digit(symbol):
    """Return the value of a Roman digit.

    Args:
        symbol: The Roman digit, such as "X".

    Returns:
        The value of the digit.

    Raises:
        KeyError: If the symbol is not a Roman digit.
    """
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
    if symbol not in values:
        raise KeyError(symbol)
    return values[symbol]

def overtime_pay(hours, wage, factor=1.5, limit=40):
    """Compute the pay for the hours above the weekly limit.

    Args:
        hours: The hours worked in the week.
        wage: The pay for a normal hour.
        factor: The factor for overtime hours.
        limit: The number of normal hours.

    Returns:
        The pay for overtime.
    """
    extra = max(0, hours - limit)
    return extra * wage * factor

def shuffle_deck(deck, rng):
    """Shuffle a deck of cards in place.

    Args:
        deck: The list of cards.
        rng: The random number generator.
    """
    for i in range(len(deck) - 1, 0, -1):
        j = rng.randint(0, i)
        deck[i], deck[j] = deck[j], deck[i]

def tide_label(height):
    """Describe the height of the tide with a word.

    Args:
        height: The height of the water in meters.

    Returns:
        The word "low", "normal" or "high".
    """
    if height < 0.5:
        return "low"
    if height < 2.0:
        return "normal"
    return "high"

def merge_playlists(first: list[str], second: list[str]) -> list[str]:
    """Merge two playlists without repeated songs.

    Args:
        first: The songs that come first.
        second: The songs to add.

    Returns:
        The merged playlist.
    """
    seen = set(first)
    return first + [song for song in second if song not in seen]

def lock_door(door, pin):
    """Lock a door if the code is right.

    Args:
        door: The door to lock.
        pin: The code that was typed.

    Raises:
        PermissionError: If the code is wrong.
    """
    if pin != door.pin:
        raise PermissionError("wrong code")
    door.locked = True
    door.log("locked")

def print_banner():
    """Print the title of the program between two lines."""
    line = "=" * 30
    print(line)
    print("Star Catalog".center(30))
    print(line)

def read_scores(path):
    """Read the scores from a text file with one number per line.

    Args:
        path: The path of the file.

    Returns:
        A list of scores.
    """
    with open(path) as file:
        return [float(line) for line in file if line.strip()]

def parking_fee(minutes, *, weekend=False):
    """Compute the parking fee in dollars.

    Args:
        minutes: The parking time in minutes.
        weekend: Whether the weekend price applies.

    Returns:
        The fee in dollars.

    Raises:
        ValueError: If minutes is negative.
    """
    if minutes < 0:
        raise ValueError("minutes must not be negative")
    hourly = 1.0 if weekend else 2.5
    return math.ceil(minutes / 60) * hourly

def dilute(solution_ml: float, ratio: float) -> float:
    """Compute how much water dilutes a solution to a ratio.

    Args:
        solution_ml: The volume of the solution in milliliters.
        ratio: The parts of water for one part of solution.

    Returns:
        The volume of water in milliliters.
    """
    if ratio <= 0:
        return 0.0
    return solution_ml * ratio

def next_train(timetable, now):
    """Find the next train after a time.

    Args:
        timetable: The departure times in ascending order.
        now: The current time.

    Returns:
        The time of the next departure.

    Raises:
        LookupError: If no train leaves any more.
    """
    for departure in timetable:
        if departure > now:
            return departure
    raise LookupError("no more trains today")

def chess_square(column, row):
    """Return the name of a square on the chess board.

    Args:
        column: The column, from 0 to 7.
        row: The row, from 0 to 7.

    Returns:
        The name of the square, such as "e4".

    Raises:
        IndexError: If the square is not on the board.
    """
    if not (0 <= column < 8 and 0 <= row < 8):
        raise IndexError("off the board")
    return "abcdefgh"[column] + str(row + 1)

def close_all(windows):
    """Close all windows that are open.

    Args:
        windows: The windows to close.

    Returns:
        The number of windows that were closed.
    """
    count = 0
    for window in windows:
        if window.is_open:
            window.close()
            count += 1
    return count

def heart_rate_zone(age, rate):
    """Determine the training zone of a heart rate.

    Args:
        age: The age of the athlete in years.
        rate: The heart rate in beats per minute.

    Returns:
        The number of the zone, from 1 to 3.
    """
    share = rate / (220 - age)
    if share < 0.6:
        return 1
    return 2 if share < 0.8 else 3

def mask_card(number: str, visible: int = 4) -> str:
    """Replace all but the last digits of a card number with stars.

    Args:
        number: The card number.
        visible: The number of digits to show.

    Returns:
        The masked card number.

    Raises:
        ValueError: If the number has characters that are not digits.
    """
    if not number.isdigit():
        raise ValueError("only digits are allowed")
    hidden = len(number) - visible
    return "*" * hidden + number[hidden:]

def water_plants(plants, tank):
    """Water all dry plants from a tank.

    Args:
        plants: The plants to water.
        tank: The tank with the water.

    Raises:
        TankEmptyError: If the tank runs out of water.
    """
    for plant in plants:
        if plant.is_dry():
            if tank.liters <= 0:
                raise TankEmptyError("refill the tank")
            tank.liters -= 1
            plant.water()

def syllable_guess(word):
    """Estimate the number of syllables of a word.

    Args:
        word: The word in lower case.

    Returns:
        The number of groups of vowels, at least 1.
    """
    groups = 0
    previous = False
    for letter in word:
        vowel = letter in "aeiouy"
        groups += vowel and not previous
        previous = vowel
    return max(1, groups)

def invite_guests(party, names, limit):
    """Add guests to a party until the limit is reached.

    Args:
        party: The party with its guest list.
        names: The names to invite.
        limit: The largest number of guests.

    Returns:
        The names that did not fit.
    """
    free = limit - len(party.guests)
    party.guests.extend(names[:free])
    return names[free:]

def reset_counters(self):
    """Set all counters of the machine to zero."""
    for name in self.counters:
        self.counters[name] = 0
    self.total = 0

def hex_color(red, green, blue):
    """Format a color as a hexadecimal code.

    Args:
        red: The red part, from 0 to 255.
        green: The green part, from 0 to 255.
        blue: The blue part, from 0 to 255.

    Returns:
        The code of the color, such as "#ff8800".

    Raises:
        ValueError: If a part is not between 0 and 255.
    """
    for part in (red, green, blue):
        if not 0 <= part <= 255:
            raise ValueError(f"bad part: {part}")
    return f"#{red:02x}{green:02x}{blue:02x}"

def dew_point_warning(temperature: float, dew_point: float) -> bool:
    """Tell whether fog is probable.

    Args:
        temperature: The air temperature in degrees Celsius.
        dew_point: The dew point in degrees Celsius.

    Returns:
        True if the two temperatures are close.
    """
    return temperature - dew_point < 2.5

def load_settings(path, defaults=None):
    """Load settings from a JSON file on top of default values.

    Args:
        path: The path of the JSON file.
        defaults: The values for missing settings.

    Returns:
        A dictionary of settings.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    settings = dict(defaults or {})
    settings.update(json.loads(path.read_text()))
    return settings

def vote_winner(ballots):
    """Determine the candidate with the most votes.

    Args:
        ballots: A list with one name per vote.

    Returns:
        The name of the winner, or None for a tie.
    """
    ranking = Counter(ballots).most_common(2)
    if len(ranking) == 2 and ranking[0][1] == ranking[1][1]:
        return None
    return ranking[0][0]

def escape_html(text: str) -> str:
    """Escape the special characters of HTML.

    Args:
        text: The text to escape.

    Returns:
        The text that is safe in a page.
    """
    for old, new in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(old, new)
    return text

def assign_seats(passengers, rows, seats_per_row=6):
    """Assign a seat to each passenger, row by row.

    Args:
        passengers: The names of the passengers.
        rows: The number of rows.
        seats_per_row: The number of seats in a row.

    Returns:
        A dictionary from each name to its row and seat.

    Raises:
        OverflowError: If there are more passengers than seats.
    """
    if len(passengers) > rows * seats_per_row:
        raise OverflowError("the plane is full")
    return {name: divmod(i, seats_per_row) for i, name in enumerate(passengers)}

def snooze(alarm, minutes=10):
    """Delay an alarm by some minutes.

    Args:
        alarm: The alarm to delay.
        minutes: The delay in minutes.
    """
    alarm.time += timedelta(minutes=minutes)
    alarm.ringing = False

def trail_difficulty(distance_km, climb_m):
    """Rate how difficult a hiking trail is.

    Args:
        distance_km: The length of the trail in kilometers.
        climb_m: The total climb in meters.

    Returns:
        A number from 1 for easy to 5 for hard.
    """
    effort = distance_km + climb_m / 100
    return min(5, 1 + int(effort // 8))

def pop_task(queue: list) -> dict:
    """Remove the most urgent task from a queue.

    Args:
        queue: The list of tasks.

    Returns:
        The task with the highest priority.

    Raises:
        IndexError: If the queue is empty.
    """
    if not queue:
        raise IndexError("nothing to do")
    best = max(queue, key=lambda task: task["priority"])
    queue.remove(best)
    return best

def caesar(message, shift):
    """Encrypt a message with the Caesar cipher.

    Args:
        message: The message to encrypt.
        shift: The number of letters to shift by.

    Returns:
        The encrypted message in upper case.
    """
    result = ""
    for letter in message.upper():
        if letter.isalpha():
            letter = chr((ord(letter) - 65 + shift) % 26 + 65)
        result += letter
    return result

def drain_battery(self, load_watts, seconds):
    """Reduce the charge of the battery by the energy used.

    Args:
        load_watts: The power of the load in watts.
        seconds: The time in seconds.

    Raises:
        BatteryEmpty: If the charge is not sufficient.
    """
    used = load_watts * seconds
    if used > self.charge:
        raise BatteryEmpty
    self.charge -= used

def count_vowels(text):
    """Count the vowels in a text.

    Args:
        text: The text to search.

    Returns:
        The number of vowels.
    """
    total = 0
    for char in text.lower():
        if char in "aeiou":
            total += 1
    return total

def best_before(opened: date, shelf_days: int, frozen: bool = False) -> date:
    """Compute the day until which food can be eaten.

    Args:
        opened: The day on which the pack was opened.
        shelf_days: The number of days that it keeps.
        frozen: Whether the food is in the freezer.

    Returns:
        The last day on which the food is good.
    """
    factor = 6 if frozen else 1
    return opened + timedelta(days=shelf_days * factor)

def gear_ratio(front_teeth, rear_teeth):
    """Compute the gear ratio of a bicycle.

    Args:
        front_teeth: The number of teeth of the front ring.
        rear_teeth: The number of teeth of the rear ring.

    Returns:
        The turns of the wheel for one turn of the pedals.

    Raises:
        ZeroDivisionError: If the rear ring has no teeth.
    """
    if rear_teeth == 0:
        raise ZeroDivisionError("the rear ring needs teeth")
    return front_teeth / rear_teeth

def archive_letters(inbox, archive, before):
    """Move old letters from the inbox to the archive.

    Args:
        inbox: The list of current letters.
        archive: The list that receives old letters.
        before: The date before which letters are old.

    Returns:
        The number of letters that were moved.
    """
    old = [letter for letter in inbox if letter.date < before]
    for letter in old:
        inbox.remove(letter)
        archive.append(letter)
    return len(old)

def blink(led, times):
    """Blink a light several times.

    Args:
        led: The light to switch.
        times: The number of blinks.
    """
    for _ in range(times):
        led.on()
        sleep(0.2)
        led.off()
        sleep(0.2)

def pascal_row(n: int) -> list[int]:
    """Return a row of Pascal's triangle.

    Args:
        n: The index of the row, from 0.

    Returns:
        The numbers in the row.

    Raises:
        ValueError: If n is negative.
    """
    if n < 0:
        raise ValueError("n must not be negative")
    row = [1]
    for k in range(n):
        row.append(row[-1] * (n - k) // (k + 1))
    return row

def translate_menu(menu, dictionary):
    """Translate the dishes of a menu.

    Args:
        menu: The names of the dishes.
        dictionary: A dictionary with the translations.

    Returns:
        The translated names, unknown ones unchanged.
    """
    return [dictionary.get(dish, dish) for dish in menu]

def dose_for(weight_kg, age_years, mg_per_kg):
    """Compute the dose of a medicine for a patient.

    Args:
        weight_kg: The weight of the patient in kilograms.
        age_years: The age of the patient in years.
        mg_per_kg: The dose in milligrams per kilogram.

    Returns:
        The dose in milligrams.

    Raises:
        UnsafeDoseError: If the patient is younger than two years.
        ValueError: If the weight is not positive.
    """
    if age_years < 2:
        raise UnsafeDoseError("ask a doctor")
    if weight_kg <= 0:
        raise ValueError("weight must be positive")
    return weight_kg * mg_per_kg

def mark_present(register, student):
    """Note that a student is present today.

    Args:
        register: The attendance of the class.
        student: The name of the student.

    Raises:
        KeyError: If the student is not in the class.
    """
    if student not in register:
        raise KeyError(student)
    register[student].append(date.today())

def ticket_price(age: int, member: bool) -> float:
    """Determine the price of a museum ticket.

    Args:
        age: The age of the visitor.
        member: Whether the visitor is a member.

    Returns:
        The price in dollars.
    """
    if member or age < 6:
        return 0.0
    if age < 18 or age >= 65:
        return 6.0
    return 12.0

def first_unique(letters):
    """Find the first letter that appears only once.

    Args:
        letters: The letters to search.

    Returns:
        The first unique letter, or None.
    """
    counts = Counter(letters)
    for letter in letters:
        if counts[letter] == 1:
            return letter
    return None

def rename_photos(folder, prefix):
    """Rename the photos of a folder with a prefix and a number.

    Args:
        folder: The folder with the photos.
        prefix: The text before the number.

    Returns:
        The number of renamed photos.
    """
    photos = sorted(folder.glob("*.jpg"))
    for number, photo in enumerate(photos, 1):
        photo.rename(folder / f"{prefix}_{number:03}.jpg")
    return len(photos)

def roll_dice(rng, count=2, sides=6):
    """Roll dice and add their values.

    Args:
        rng: The random number generator.
        count: The number of dice.
        sides: The number of sides of a die.

    Returns:
        The sum of the values.

    Raises:
        ValueError: If a die has fewer than 2 sides.
    """
    if sides < 2:
        raise ValueError("a die needs two sides")
    return sum(rng.randint(1, sides) for _ in range(count))

def sunlight_hours(sunrise, sunset):
    """Compute the hours between sunrise and sunset.

    Args:
        sunrise: The time of sunrise.
        sunset: The time of sunset.

    Returns:
        The length of the day in hours.
    """
    seconds = (sunset - sunrise).total_seconds()
    return seconds / 3600

def toggle_mute(self) -> bool:
    """Switch the sound of the player on or off.

    Returns:
        True if the player is silent now.
    """
    self.muted = not self.muted
    self.output.set_volume(0 if self.muted else self.volume)
    return self.muted

def parse_recipe_line(line: str) -> tuple[float, str, str]:
    """Parse one ingredient of a cooking recipe.

    Args:
        line: The line, such as "2 cups flour".

    Returns:
        The amount, the unit and the ingredient.

    Raises:
        ValueError: If the line has fewer than three words.
    """
    words = line.split(maxsplit=2)
    if len(words) < 3:
        raise ValueError(f"incomplete line: {line}")
    amount, unit, ingredient = words
    return float(amount), unit, ingredient

def bump_version(version, part="patch"):
    """Increase one part of a version number.

    Args:
        version: The version, such as "1.4.2".
        part: The part to increase: major, minor or patch.

    Returns:
        The new version.
    """
    major, minor, patch = map(int, version.split("."))
    if part == "major":
        return f"{major + 1}.0.0"
    if part == "minor":
        return f"{major}.{minor + 1}.0"
    return f"{major}.{minor}.{patch + 1}"

def stop_engine(engine):
    """Stop an engine once it has cooled down.

    Args:
        engine: The engine to stop.

    Raises:
        OverheatError: If the engine is still too hot.
    """
    if engine.temperature > 90:
        raise OverheatError("let it cool first")
    engine.fuel_valve.close()
    engine.running = False

def moving_average(values: list[float], window: int) -> list[float]:
    """Compute the moving average of a series.

    Args:
        values: The numbers of the series.
        window: The number of values to average.

    Returns:
        The averages, one for each full window.

    Raises:
        ValueError: If the window is larger than the series.
    """
    if window > len(values):
        raise ValueError("window too large")
    return [sum(values[i:i + window]) / window for i in range(len(values) - window + 1)]

def greet_team(members, *, formal=True):
    """Build a greeting for all members of a team.

    Args:
        members: The names of the members.
        formal: Whether to use a formal greeting.

    Returns:
        The greeting as one string.
    """
    word = "Good morning" if formal else "Hey"
    return f"{word}, {', '.join(members)}!"

def clear_cache():
    """Delete all files in the cache folder."""
    for file in CACHE.iterdir():
        if file.is_file():
            file.unlink()

def current_season():
    """Return the season of the current month.

    Returns:
        The name of the season.
    """
    month = datetime.now().month
    names = ["winter", "spring", "summer", "fall"]
    return names[month % 12 // 3]

def freight_cost(weight, distance, rate=0.02, minimum=15.0):
    """Compute the cost of transporting goods.

    Args:
        weight: The weight of the goods in kilograms.
        distance: The distance in kilometers.
        rate: The price per kilogram and kilometer.
        minimum: The lowest possible cost.

    Returns:
        The cost, at least the minimum.

    Raises:
        ValueError: If weight or distance is negative.
    """
    if weight < 0 or distance < 0:
        raise ValueError("negative values are not allowed")
    return max(minimum, weight * distance * rate)

def unlock_level(player, level):
    """Unlock a level for a player who has enough stars.

    Args:
        player: The player of the game.
        level: The level to unlock.

    Returns:
        True if the level was unlocked.
    """
    if player.stars < level.required_stars:
        return False
    player.levels.add(level.name)
    return True

def beats_to_seconds(beats: float, tempo: int) -> float:
    """Convert a number of beats to seconds.

    Args:
        beats: The number of beats.
        tempo: The tempo in beats per minute.

    Returns:
        The duration in seconds.

    Raises:
        ValueError: If the tempo is not positive.
    """
    if tempo <= 0:
        raise ValueError("tempo must be positive")
    return beats * 60 / tempo

def pack_suitcase(items, max_weight):
    """Select items for a suitcase, light ones first.

    Args:
        items: The items with their weights.
        max_weight: The largest total weight.

    Returns:
        The items that fit.
    """
    packed, total = [], 0
    for item in sorted(items, key=lambda item: item.weight):
        if total + item.weight <= max_weight:
            packed.append(item)
            total += item.weight
    return packed

def subscribe(self, address: str, topic: str = "news"):
    """Add an address to the readers of a topic.

    Args:
        address: The e-mail address of the reader.
        topic: The topic of the newsletter.

    Raises:
        InvalidAddress: If the address has no at sign.
        DuplicateReader: If the address is already on the list.
    """
    if "@" not in address:
        raise InvalidAddress(address)
    if address in self.readers[topic]:
        raise DuplicateReader(address)
    self.readers[topic].append(address)

def join_cells(sheet, row, first, last):
    """Join neighboring cells of a table into one.

    Args:
        sheet: The table as a list of rows.
        row: The index of the changed row.
        first: The first column to join.
        last: The last column to join.

    Returns:
        The text of the joined cell.
    """
    joined = " ".join(sheet[row][first:last + 1])
    sheet[row][first:last + 1] = [joined]
    return joined

def pizza_slices(guests, slices_per_guest=3, slices_per_pizza=8):
    """Compute how many pizzas are needed for a party.

    Args:
        guests: The number of guests.
        slices_per_guest: The slices that each guest eats.
        slices_per_pizza: The slices that a pizza has.

    Returns:
        The number of whole pizzas.
    """
    slices = guests * slices_per_guest
    return -(-slices // slices_per_pizza)

def decode_flags(bits, names):
    """Decode a number into the names of its set bits.

    Args:
        bits: The number with the flags.
        names: The name of each bit, lowest first.

    Returns:
        The names of the bits that are set.
    """
    return [name for i, name in enumerate(names) if bits >> i & 1]

def ensure_open(shop, hour):
    """Verify that a shop is open at an hour.

    Args:
        shop: The shop with its opening hours.
        hour: The hour of the day.

    Raises:
        ClosedError: If the shop is closed at that hour.
    """
    if hour < shop.opens or hour >= shop.closes:
        raise ClosedError(f"{shop.name} is closed")

def lap_times(stamps: list[float]) -> list[float]:
    """Compute the time of each lap.

    Args:
        stamps: The times at which laps were finished.

    Returns:
        The duration of each lap.
    """
    laps = []
    for start, end in zip(stamps, stamps[1:]):
        laps.append(round(end - start, 2))
    return laps

def feed_cat(cat, bowl, grams=50):
    """Fill the bowl and let the cat eat if it is hungry.

    Args:
        cat: The cat to feed.
        bowl: The bowl for the food.
        grams: The amount of food in grams.

    Returns:
        True if the cat has eaten.
    """
    bowl.fill(grams)
    if not cat.hungry:
        return False
    cat.eat_from(bowl)
    return True

def isbn_check_digit(digits):
    """Compute the check digit of a book number.

    Args:
        digits: The first nine digits of the number.

    Returns:
        The check digit as a string.

    Raises:
        ValueError: If there are not exactly nine digits.
    """
    if len(digits) != 9:
        raise ValueError("nine digits expected")
    total = sum(weight * int(digit) for weight, digit in zip(range(10, 1, -1), digits))
    check = -total % 11
    return "X" if check == 10 else str(check)

def wrap_index(index, length):
    """Wrap an index around the ends of a list.

    Args:
        index: The index, which may be negative.
        length: The length of the list.

    Returns:
        An index from 0 to length - 1.

    Raises:
        ValueError: If the length is zero.
    """
    if length == 0:
        raise ValueError("the list is empty")
    return index % length

def save_drawing(canvas, path, overwrite=False):
    """Save a drawing as a PNG file.

    Args:
        canvas: The canvas with the drawing.
        path: The path of the file.
        overwrite: Whether an existing file may be replaced.

    Raises:
        FileExistsError: If the file exists and may not be replaced.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(path)
    canvas.to_image().save(path, format="PNG")

def snow_load(depth_cm, density):
    """Compute the pressure of snow on a roof.

    Args:
        depth_cm: The depth of the snow in centimeters.
        density: The density in kilograms per cubic meter.

    Returns:
        The pressure in kilonewtons per square meter.
    """
    if depth_cm < 1:
        return 0
    mass = density * depth_cm / 100
    return mass * 9.81 / 1000

def common_friends(network, one, other):
    """Find the friends that two people share.

    Args:
        network: A dictionary from each person to friends.
        one: The first person.
        other: The second person.

    Returns:
        The shared friends in alphabetical order.
    """
    return sorted(set(network[one]) & set(network[other]))

def checkout(cart, wallet):
    """Pay for all items in a cart.

    Args:
        cart: The cart with the items.
        wallet: The wallet that pays.

    Returns:
        The total that was paid.

    Raises:
        EmptyCartError: If the cart has no items.
        InsufficientFunds: If the wallet has too little money.
    """
    if not cart.items:
        raise EmptyCartError
    total = sum(item.price for item in cart.items)
    if wallet.balance < total:
        raise InsufficientFunds(total)
    wallet.balance -= total
    return total

def tail(path, n=10):
    """Return the last lines of a file.

    Args:
        path: The path of the file.
        n: The number of lines.

    Returns:
        The last lines as a list.
    """
    with open(path) as file:
        return file.readlines()[-n:]

def moon_phase(day_of_cycle: int) -> str:
    """Name the phase of the moon on a day of its cycle.

    Args:
        day_of_cycle: The day since the last new moon.

    Returns:
        The name of the phase.
    """
    phases = ["new", "waxing", "full", "waning"]
    return phases[int(day_of_cycle / 29.5 * 4) % 4]

def undo(history, document):
    """Undo the last change of a document.

    Args:
        history: The stack of earlier states.
        document: The document to change.

    Raises:
        NothingToUndo: If the history is empty.
    """
    if not history:
        raise NothingToUndo()
    document.text = history.pop()
    document.modified = bool(history)

def word_ladder_step(a, b):
    """Check whether two words differ in exactly one letter.

    Args:
        a: The first word.
        b: The second word.

    Returns:
        True if the words differ in one letter.
    """
    if len(a) != len(b):
        return False
    return sum(x != y for x, y in zip(a, b)) == 1

def interest(principal, rate, years, compound=True):
    """Compute the interest on a sum of money.

    Args:
        principal: The sum at the beginning.
        rate: The yearly rate, such as 0.03.
        years: The number of years.
        compound: Whether interest earns interest.

    Returns:
        The interest after all years.
    """
    if compound:
        return principal * (1 + rate) ** years - principal
    return principal * rate * years

def tokenize_formula(formula):
    """Split a chemical formula into elements and numbers.

    Args:
        formula: The formula, such as "H2O".

    Returns:
        A list of pairs of element and number.

    Raises:
        FormulaError: If the formula has no element in it.
    """
    pairs = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    if not pairs:
        raise FormulaError(formula)
    return [(element, int(number or 1)) for element, number in pairs]

def retry(action, attempts):
    """Run an action until it succeeds.

    Args:
        action: The function to call.
        attempts: The largest number of calls.

    Returns:
        The result of the action.

    Raises:
        RuntimeError: If all attempts fail.
    """
    for _ in range(attempts):
        try:
            return action()
        except OSError:
            continue
    raise RuntimeError("all attempts failed")

def stretch_goal(pledges, goals):
    """Find the highest goal that the pledges reach.

    Args:
        pledges: The amounts that were pledged.
        goals: The goals in dollars.

    Returns:
        The highest goal, or 0 if none is reached.
    """
    total = sum(pledges)
    reached = [goal for goal in goals if goal <= total]
    return max(reached, default=0)

def add_to_shelf(self, book):
    """Put a book on the shelf, in alphabetical order.

    Args:
        book: The book to add.

    Raises:
        ShelfFullError: If there is no space left.
    """
    if len(self.books) >= self.capacity:
        raise ShelfFullError(self.name)
    self.books.append(book)
    self.books.sort(key=lambda one: one.title)

def fuel_needed(distance_km, liters_per_100_km, reserve=5):
    """Compute the fuel for a trip with a reserve.

    Args:
        distance_km: The length of the trip in kilometers.
        liters_per_100_km: The consumption for 100 kilometers.
        reserve: The extra fuel in liters.

    Returns:
        The fuel in liters.
    """
    return distance_km * liters_per_100_km / 100 + reserve

def is_palindrome(phrase: str) -> bool:
    """Check whether a phrase reads the same in both directions.

    Args:
        phrase: The phrase, with any punctuation.

    Returns:
        True if the phrase is a palindrome.
    """
    letters = [c.lower() for c in phrase if c.isalpha()]
    return letters == letters[::-1]

def start_timer(timers, name):
    """Start a timer with a name.

    Args:
        timers: The dictionary of running timers.
        name: The name of the timer.

    Raises:
        RuntimeError: If a timer with this name is running.
    """
    if name in timers:
        raise RuntimeError(f"{name} is running")
    timers[name] = time.monotonic()

def allergens(dish, recipes, risky):
    """List the risky ingredients of a dish.

    Args:
        dish: The name of the dish.
        recipes: A dictionary from dishes to ingredients.
        risky: The ingredients to look for.

    Returns:
        The risky ingredients in the dish.

    Raises:
        KeyError: If the dish is not in the recipes.
    """
    if dish not in recipes:
        raise KeyError(f"unknown dish {dish}")
    return [item for item in recipes[dish] if item in risky]

def transpose_matrix(matrix):
    """Swap the rows and columns of a matrix.

    Args:
        matrix: The matrix as a list of rows.

    Returns:
        The transposed matrix.

    Raises:
        ValueError: If the rows differ in length.
    """
    if len({len(row) for row in matrix}) > 1:
        raise ValueError("rows differ in length")
    return [list(column) for column in zip(*matrix)]

def power_of_two(n: int) -> bool:
    """Check whether a number is a power of two.

    Args:
        n: The number to check.

    Returns:
        True if n is a power of two.
    """
    return n > 0 and n & (n - 1) == 0

def hang_pictures(wall_cm, frames, gap_cm):
    """Compute the left edge of each picture on a wall.

    Args:
        wall_cm: The width of the wall in centimeters.
        frames: The widths of the pictures.
        gap_cm: The space between two pictures.

    Returns:
        The positions of the left edges.
    """
    used = sum(frames) + gap_cm * (len(frames) - 1)
    x = (wall_cm - used) / 2
    edges = []
    for width in frames:
        edges.append(x)
        x += width + gap_cm
    return edges

def cheer(team, times=3):
    """Print a cheer for a team.

    Args:
        team: The name of the team.
        times: The number of repetitions.
    """
    for _ in range(times):
        print(f"Go, {team}!")

def dig_tunnel(mole, meters):
    """Let a mole dig and return its new position.

    Args:
        mole: The mole that digs.
        meters: The distance to dig.

    Returns:
        The position of the mole.

    Raises:
        RockError: If a rock blocks the way.
    """
    target = mole.position + meters
    if any(mole.position < rock <= target for rock in mole.field.rocks):
        raise RockError(target)
    mole.position = target
    return mole.position

def parse_duration(text: str) -> int:
    """Parse a duration such as "2h" or "45m".

    Args:
        text: The number with its unit.

    Returns:
        The duration in seconds.

    Raises:
        ValueError: If the unit is not known.
    """
    number, unit = int(text[:-1]), text[-1]
    factors = {"s": 1, "m": 60, "h": 3600}
    if unit not in factors:
        raise ValueError(f"unknown unit {unit}")
    return number * factors[unit]

def average_rating(reviews):
    """Compute the average rating of reviews.

    Args:
        reviews: The reviews with their stars.

    Returns:
        The average, or None without reviews.
    """
    if not reviews:
        return None
    return sum(review.stars for review in reviews) / len(reviews)

def lift_weight(robot, crate):
    """Let a robot lift a crate.

    Args:
        robot: The robot that lifts.
        crate: The crate to lift.

    Raises:
        TooHeavyError: If the crate is too heavy for the robot.
        GripError: If the robot already holds something.
    """
    if crate.weight > robot.max_load:
        raise TooHeavyError(crate.weight)
    if robot.hand is not None:
        raise GripError("the hand is not empty")
    robot.hand = crate

def zodiac_of_year(year):
    """Return the animal of a year in the Chinese calendar.

    Args:
        year: The year, such as 2024.

    Returns:
        The name of the animal.
    """
    animals = "rat ox tiger rabbit dragon snake horse goat monkey rooster dog pig".split()
    return animals[(year - 4) % 12]

async def send_reminder(mailer, member, due_date):
    """Send a reminder about a borrowed book to a member.

    Args:
        mailer: The service that sends mails.
        member: The member of the library.
        due_date: The day on which the book is due.
    """
    text = f"Please return your book by {due_date:%B %d}."
    await mailer.send(member.email, "Reminder", text)

def rank_suffix(place: int) -> str:
    """Format a place in a race, such as "3rd".

    Args:
        place: The place, from 1.

    Returns:
        The place with its suffix.
    """
    if 10 <= place % 100 <= 20:
        return f"{place}th"
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{suffix}"

def mix_paint(colors, shares):
    """Mix several colors with given shares.

    Args:
        colors: The colors as tuples of three numbers.
        shares: The share of each color.

    Returns:
        The mixed color as a tuple.

    Raises:
        ValueError: If the shares do not add up to 1.
    """
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError("shares must add up to 1")
    return tuple(sum(color[i] * share for color, share in zip(colors, shares)) for i in range(3))

def evict_oldest(cache: dict, limit: int) -> None:
    """Remove the oldest entries until the cache is small enough.

    Args:
        cache: The cache, in order of insertion.
        limit: The largest number of entries.
    """
    while len(cache) > limit:
        oldest = next(iter(cache))
        del cache[oldest]

def bowling_score(rolls):
    """Add up the pins of a simple bowling game.

    Args:
        rolls: The pins of each roll.

    Returns:
        The total number of pins.

    Raises:
        ValueError: If a roll has more than ten pins.
    """
    for pins in rolls:
        if pins > 10:
            raise ValueError(f"impossible roll: {pins}")
    return sum(rolls)

def nearest_station(stations, x, y):
    """Find the station that is nearest to a point.

    Args:
        stations: The stations with their coordinates.
        x: The first coordinate of the point.
        y: The second coordinate of the point.

    Returns:
        The nearest station.
    """
    return min(stations, key=lambda s: (s.x - x) ** 2 + (s.y - y) ** 2)

def shave_sheep(flock):
    """Cut the wool of all sheep that have enough.

    Args:
        flock: The sheep of the farm.

    Returns:
        The total wool in kilograms.
    """
    wool = 0.0
    for sheep in flock:
        if sheep.wool_kg >= 2:
            wool += sheep.wool_kg
            sheep.wool_kg = 0
    return wool

def diff_days(start: date, end: date) -> int:
    """Count the days between two dates.

    Args:
        start: The first date.
        end: The last date.

    Returns:
        The number of days.

    Raises:
        ValueError: If the end is before the start.
    """
    if end < start:
        raise ValueError("end before start")
    return (end - start).days

def compress_runs(text):
    """Compress repeated characters to a character and a count.

    Args:
        text: The text to compress.

    Returns:
        The compressed text, such as "a3b1".
    """
    parts = []
    for char, group in itertools.groupby(text):
        parts.append(f"{char}{len(list(group))}")
    return "".join(parts)

def set_thermostat(room, degrees):
    """Set the temperature of a room.

    Args:
        room: The room to heat.
        degrees: The temperature in degrees Celsius.

    Raises:
        TypeError: If degrees is not a number.
        ValueError: If degrees is not between 5 and 30.
    """
    if not isinstance(degrees, (int, float)):
        raise TypeError("a number is required")
    if not 5 <= degrees <= 30:
        raise ValueError("out of range")
    room.target = degrees

def random_haiku(first_lines, second_lines, third_lines, rng):
    """Compose a haiku from random lines.

    Args:
        first_lines: The choices for the first line.
        second_lines: The choices for the second line.
        third_lines: The choices for the third line.
        rng: The random number generator.

    Returns:
        The poem as one string.
    """
    lines = [rng.choice(group) for group in (first_lines, second_lines, third_lines)]
    return "\n".join(lines)

def visible_stars(stars, limit=6.0):
    """Select the stars that can be seen without a telescope.

    Args:
        stars: The stars with their magnitudes.
        limit: The largest magnitude that is visible.

    Returns:
        The visible stars, brightest first.
    """
    seen = [star for star in stars if star.magnitude <= limit]
    return sorted(seen, key=lambda star: star.magnitude)

def knead(dough, minutes):
    """Knead a dough for some minutes.

    Args:
        dough: The dough to knead.
        minutes: The time in minutes.

    Raises:
        ValueError: If minutes is not positive.
    """
    if minutes <= 0:
        raise ValueError("minutes must be positive")
    dough.elasticity = min(1.0, dough.elasticity + 0.05 * minutes)

def remove_duplicates(rows: list[dict], key: str) -> list[dict]:
    """Remove the rows whose key has appeared before.

    Args:
        rows: The rows of the table.
        key: The name of the column to compare.

    Returns:
        The rows with different keys.
    """
    seen = {}
    for row in rows:
        seen.setdefault(row[key], row)
    return list(seen.values())

def share_bill(total, people, tip_percent=10):
    """Divide a restaurant bill with a tip among people.

    Args:
        total: The amount of the bill.
        people: The number of people.
        tip_percent: The tip in percent.

    Returns:
        The amount that each person pays.

    Raises:
        ZeroDivisionError: If there are no people.
    """
    if people == 0:
        raise ZeroDivisionError("no one is there to pay")
    return round(total * (1 + tip_percent / 100) / people, 2)

def harvest(field, today):
    """Collect all crops that are ripe.

    Args:
        field: The field with the crops.
        today: The current day.

    Returns:
        The names of the harvested crops.
    """
    ripe = [crop for crop in field.crops if crop.ripe_on <= today]
    field.crops = [crop for crop in field.crops if crop not in ripe]
    return [crop.name for crop in ripe]

def version_tuple():
    """Return the version of the program as numbers.

    Returns:
        A tuple of three numbers.
    """
    return tuple(int(part) for part in VERSION.split("."))

def connect(host, port=8080, timeout=5.0):
    """Open a connection to a server.

    Args:
        host: The name of the server.
        port: The port of the server.
        timeout: The time limit in seconds.

    Returns:
        The open connection.

    Raises:
        ValueError: If the port is not between 1 and 65535.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"bad port {port}")
    return socket.create_connection((host, port), timeout)

def evaporate(pool, sunshine_hours, depth_cm):
    """Reduce the depth of a pool on a sunny day.

    Args:
        pool: The pool that loses water.
        sunshine_hours: The hours of sunshine.
        depth_cm: The loss per hour in centimeters.
    """
    loss = sunshine_hours * depth_cm
    pool.depth = max(0, pool.depth - loss)

def swap_cards(hand, other_hand, index):
    """Exchange the cards at the same place of two hands.

    Args:
        hand: The cards of the first player.
        other_hand: The cards of the second player.
        index: The place of the cards.
    """
    hand[index], other_hand[index] = other_hand[index], hand[index]

def quote_line(item, quantity: int, *, currency: str = "$") -> str:
    """Format one line of an offer.

    Args:
        item: The item that is offered.
        quantity: The number of pieces.
        currency: The sign of the currency.

    Returns:
        The line with name, quantity and price.
    """
    price = item.price * quantity
    return f"{quantity} x {item.name}: {currency}{price:.2f}"

def choose_captain(crew):
    """Choose the most experienced member of a crew as captain.

    Args:
        crew: The members of the crew.

    Returns:
        The name of the captain.

    Raises:
        NoCrewError: If the crew has no members.
    """
    if len(crew) == 0:
        raise NoCrewError("hire someone first")
    return max(crew, key=lambda sailor: sailor.years_at_sea).name

def clap(pattern):
    """Play a rhythm of claps and rests.

    Args:
        pattern: A string of "x" for a clap and "-" for a rest.

    Raises:
        ValueError: If the pattern has another character.
    """
    for sign in pattern:
        if sign not in "x-":
            raise ValueError(sign)
        play("clap" if sign == "x" else "silence")

def median_income(incomes: list[int]) -> float:
    """Compute the median of a list of incomes.

    Args:
        incomes: The incomes in dollars.

    Returns:
        The median income.

    Raises:
        StatisticsError: If the list is empty.
    """
    if not incomes:
        raise StatisticsError("no data")
    ordered = sorted(incomes)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2

def on_message(self, sender, text):
    """Show a message in the window and play a sound.

    Args:
        sender: The person who wrote the message.
        text: The text of the message.
    """
    self.window.append(f"{sender}: {text}")
    if not self.muted:
        self.play_sound()

def cable_length(points):
    """Compute the length of a cable along several points.

    Args:
        points: The points that the cable passes.

    Returns:
        The total length.
    """
    return sum(math.dist(a, b) for a, b in zip(points, points[1:]))

def grow_colony(bacteria, hours, doubling_hours=0.5):
    """Predict the size of a colony of bacteria.

    Args:
        bacteria: The number of bacteria at the start.
        hours: The time of growth in hours.
        doubling_hours: The time in which the number doubles.

    Returns:
        The predicted number of bacteria.
    """
    doublings = hours / doubling_hours
    return int(bacteria * 2 ** doublings)

def launch(rocket, countdown=10):
    """Count down and launch a rocket.

    Args:
        rocket: The rocket to launch.
        countdown: The first number of the countdown.

    Raises:
        LaunchAborted: If a check of the rocket fails.
    """
    for number in range(countdown, 0, -1):
        if not rocket.check():
            raise LaunchAborted(f"stopped at {number}")
        print(number)
    rocket.ignite()

def convert_field(row, name, kind, default=None):
    """Convert one field of a row to another type.

    Args:
        row: The row as a dictionary.
        name: The name of the field.
        kind: The type to convert to.
        default: The value for an empty field.

    Returns:
        The converted value.

    Raises:
        TypeError: If the field can't be converted.
    """
    value = row.get(name, "")
    if value == "":
        return default
    try:
        return kind(value)
    except ValueError as error:
        raise TypeError(f"{name} is not {kind.__name__}") from error

def nudge_turtle(turtle, angle, distance, pen_down=True):
    """Turn a turtle and move it forward.

    Args:
        turtle: The turtle to move.
        angle: The angle to turn in degrees.
        distance: The distance to move.
        pen_down: Whether the turtle draws a line.
    """
    turtle.turn(angle)
    if pen_down:
        turtle.pen.lower()
    turtle.forward(distance)

def dismiss_popup(page):
    """Close the popup of a page if there is one.

    Args:
        page: The page to clean up.
    """
    popup = page.find("popup")
    if popup is None:
        return
    popup.click("close")
    page.wait(0.5)

def apply_coupon(basket, code: str, today: date) -> float:
    """Apply a coupon to a basket.

    Args:
        basket: The basket to pay.
        code: The code of the coupon.
        today: The current date.

    Returns:
        The new total of the basket.

    Raises:
        CouponError: If the code is unknown or has expired.
    """
    coupon = COUPONS.get(code)
    if coupon is None:
        raise CouponError("unknown code")
    if coupon.expires < today:
        raise CouponError("expired")
    basket.total -= min(basket.total, coupon.value)
    return basket.total

def area(self):
    """Compute the area of the shape.

    Raises:
        NotImplementedError: If a subclass does not define the area.
    """
    raise NotImplementedError(type(self).__name__)

def steer(boat, rudder, wind, current):
    """Update the course of a boat for one minute.

    Args:
        boat: The boat to steer.
        rudder: The angle of the rudder in degrees.
        wind: The drift by the wind in degrees.
        current: The drift by the water in degrees.

    Returns:
        The new course from 0 to 359.
    """
    boat.course += rudder * 0.8 + wind + current
    boat.course %= 360
    return round(boat.course)

def parse_temperature(label):
    """Parse a temperature such as "21.5 C" or "70 F".

    Args:
        label: The number and the scale.

    Returns:
        The temperature in degrees Celsius.

    Raises:
        ValueError: If the scale is neither C nor F.
    """
    number, scale = label.split()
    if scale == "C":
        return float(number)
    if scale == "F":
        return (float(number) - 32) / 1.8
    raise ValueError(f"unknown scale {scale!r}")

def expand_ranges(spec: str) -> list[int]:
    """Expand page ranges such as "1-3,7" to page numbers.

    Args:
        spec: The ranges, separated by commas.

    Returns:
        The page numbers in order.
    """
    pages = []
    for part in spec.split(","):
        first, _, last = part.partition("-")
        pages.extend(range(int(first), int(last or first) + 1))
    return pages

def stamp_passport(traveler, country, entry_day, stay_days=90):
    """Record the visit of a traveler in the passport.

    Args:
        traveler: The traveler who enters.
        country: The country of the visit.
        entry_day: The day of the entry.
        stay_days: The allowed stay in days.

    Returns:
        The last day of the allowed stay.

    Raises:
        VisaError: If the traveler has no visa for the country.
    """
    if country not in traveler.visas:
        raise VisaError(country)
    last_day = entry_day + timedelta(days=stay_days)
    traveler.passport.append((country, entry_day, last_day))
    return last_day

def flush(self):
    """Write the buffered lines to the file and empty the buffer."""
    if not self.buffer:
        return
    self.file.writelines(self.buffer)
    self.buffer.clear()

def weighted_choice(options, weights, rng):
    """Choose an option at random, in proportion to its weight.

    Args:
        options: The options to choose from.
        weights: The weight of each option.
        rng: The random number generator.

    Returns:
        The chosen option.

    Raises:
        ValueError: If options and weights differ in length.
    """
    if len(options) != len(weights):
        raise ValueError("lengths differ")
    point = rng.random() * sum(weights)
    for option, weight in zip(options, weights):
        point -= weight
        if point <= 0:
            return option

def tune_string(guitar, string, target_hz, *, tolerance=1.0):
    """Tune a string of a guitar to a frequency.

    Args:
        guitar: The guitar to tune.
        string: The number of the string.
        target_hz: The desired frequency in hertz.
        tolerance: The error in hertz that is acceptable.

    Raises:
        StringBroken: If the string breaks.
    """
    while abs(guitar.measure(string) - target_hz) > tolerance:
        guitar.turn_peg(string, target_hz)
        if guitar.is_broken(string):
            raise StringBroken(string)

def column_widths(table):
    """Determine the width of each column of a table.

    Args:
        table: The table as a list of rows.

    Returns:
        The length of the longest cell in each column.
    """
    widths = [0] * len(table[0])
    for row in table:
        for i, cell in enumerate(row):
            widths[i] = max(widths[i], len(str(cell)))
    return widths

def hide_treasure(island, chest, depth):
    """Bury a chest at a random place of an island.

    Args:
        island: The island to dig on.
        chest: The chest to bury.
        depth: The depth of the hole in meters.

    Returns:
        The coordinates of the chest.
    """
    x, y = island.random_place()
    island.dig(x, y, depth)
    island.chests[x, y] = chest
    return x, y

def require_admin(user):
    """Verify that a user is an administrator.

    Args:
        user: The user to verify.

    Raises:
        NotLoggedIn: If there is no user.
        PermissionError: If the user is not an administrator.
    """
    if user is None:
        raise NotLoggedIn()
    if "admin" not in user.roles:
        raise PermissionError(user.name)

def seconds_until(hour: int, minute: int = 0) -> int:
    """Compute the seconds until a time of the day.

    Args:
        hour: The hour of the time.
        minute: The minute of the time.

    Returns:
        The number of seconds, at most one day.
    """
    now = datetime.now()
    target = now.replace(hour=hour, minute=minute, second=0)
    if target <= now:
        target += timedelta(days=1)
    return int((target - now).total_seconds())

async def stream_file(response, path, chunk_size=65536):
    """Send a file to a client in chunks.

    Args:
        response: The response to the client.
        path: The path of the file.
        chunk_size: The number of bytes in a chunk.

    Returns:
        The number of bytes that were sent.
    """
    sent = 0
    with open(path, "rb") as file:
        while chunk := file.read(chunk_size):
            await response.write(chunk)
            sent += len(chunk)
    return sent

def climb_stairs(steps):
    """Count the ways to climb stairs with steps of one or two.

    Args:
        steps: The number of stairs.

    Returns:
        The number of different ways.
    """
    ways, before = 1, 0
    for _ in range(steps):
        ways, before = ways + before, ways
    return ways

def trade(player_a, player_b, offer, request):
    """Exchange goods between two players.

    Args:
        player_a: The player who makes the offer.
        player_b: The player who accepts it.
        offer: The goods that the first player gives.
        request: The goods that the first player gets.

    Raises:
        TradeError: If a player does not own the goods.
    """
    if not player_a.owns(offer) or not player_b.owns(request):
        raise TradeError("missing goods")
    player_a.give(offer, player_b)
    player_b.give(request, player_a)

def smallest_missing(numbers):
    """Find the smallest positive integer that is missing.

    Args:
        numbers: The numbers that are present.

    Returns:
        The smallest missing integer.
    """
    present = set(numbers)
    candidate = 1
    while candidate in present:
        candidate += 1
    return candidate

def calibrate_scale(scale, known_weight, readings):
    """Calibrate a scale with several readings of a known weight.

    Args:
        scale: The scale to calibrate.
        known_weight: The true weight in grams.
        readings: The weights that the scale shows.

    Raises:
        CalibrationError: If the readings differ too much.
    """
    spread = max(readings) - min(readings)
    if spread > known_weight * 0.05:
        raise CalibrationError(f"spread of {spread} g")
    scale.offset = known_weight - sum(readings) / len(readings)

def unique_name(name: str, taken: set[str]) -> str:
    """Append a number to a name until it is not taken.

    Args:
        name: The desired name.
        taken: The names that are in use.

    Returns:
        A name that is free.
    """
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate

def recycle(bins, waste, *, strict=False):
    """Put a piece of waste into the right bin.

    Args:
        bins: A dictionary from materials to bins.
        waste: The piece of waste.
        strict: Whether an unknown material is an error.

    Returns:
        The bin that was used.

    Raises:
        UnknownMaterial: If no bin fits and strict is set.
    """
    if waste.material not in bins and strict:
        raise UnknownMaterial(waste.material)
    target = bins.get(waste.material, bins["other"])
    target.append(waste)
    return target

def show_progress(done, total, width=40):
    """Print a progress bar on the current line.

    Args:
        done: The number of finished steps.
        total: The number of all steps.
        width: The width of the bar in characters.
    """
    filled = width * done // total
    bar = "#" * filled + "." * (width - filled)
    print(f"\r[{bar}] {done}/{total}", end="")

def read_config_value(config, section, key):
    """Look up a value in a section of a configuration.

    Args:
        config: The configuration with its sections.
        section: The name of the section.
        key: The name of the value.

    Returns:
        The value as a string.

    Raises:
        ConfigError: If the section or the key is missing.
    """
    try:
        return config[section][key]
    except KeyError:
        raise ConfigError(f"{section}.{key} is missing") from None

def photosynthesis(leaf, light, water, co2):
    """Let a leaf produce sugar for one hour.

    Args:
        leaf: The leaf that produces sugar.
        light: The light in lumens.
        water: The water in milliliters.
        co2: The carbon dioxide in milligrams.

    Returns:
        The sugar in milligrams.
    """
    limit = min(light / 100, water / 2, co2 / 5)
    sugar = limit * leaf.area
    leaf.sugar += sugar
    return sugar

def lucky_numbers(seed, count=6, highest=49):
    """Draw different numbers for a lottery.

    Args:
        seed: The seed of the random numbers.
        count: The number of numbers to draw.
        highest: The highest possible number.

    Returns:
        The numbers in ascending order.

    Raises:
        ValueError: If more numbers are drawn than exist.
    """
    if count > highest:
        raise ValueError("too many numbers")
    rng = random.Random(seed)
    return sorted(rng.sample(range(1, highest + 1), count))

def pause(self, reason=""):
    """Pause the download and remember the reason.

    Args:
        reason: The reason that is shown to the user.

    Raises:
        RuntimeError: If the download is already complete.
    """
    if self.progress == 1.0:
        raise RuntimeError("already complete")
    self.paused = True
    self.reason = reason or "paused by the user"

def fold_paper(thickness_mm, folds):
    """Compute the thickness of paper that is folded several times.

    Args:
        thickness_mm: The thickness of the sheet in millimeters.
        folds: The number of folds.

    Returns:
        The thickness in millimeters.

    Raises:
        ValueError: If folds is negative.
        OverflowError: If folds is greater than 50.
    """
    if folds < 0:
        raise ValueError("folds must not be negative")
    if folds > 50:
        raise OverflowError("no paper is that large")
    return thickness_mm * 2 ** folds

def speak(parrot, phrase, volume=5):
    """Let a parrot repeat a phrase that it knows.

    Args:
        parrot: The parrot that repeats the phrase.
        phrase: The phrase to repeat.
        volume: The volume from 1 to 10.

    Returns:
        The words of the parrot, in capitals if it is loud.
    """
    if phrase not in parrot.phrases:
        return "Squawk!"
    return phrase.upper() if volume > 7 else phrase

def detect_spike(samples: list[float], factor: float, minimum: int = 5) -> int | None:
    """Find the first sample that is far above the average.

    Args:
        samples: The samples in order of time.
        factor: The multiple of the average that counts.
        minimum: The number of samples before the search begins.

    Returns:
        The index of the spike, or None.
    """
    for i in range(minimum, len(samples)):
        average = sum(samples[:i]) / i
        if samples[i] > factor * average:
            return i
    return None

def draw_box(canvas, left, top, width):
    """Draw a square box on a canvas of text.

    Args:
        canvas: The rows of characters.
        left: The first column of the box.
        top: The first row of the box.
        width: The side of the box in characters.
    """
    for i in range(width):
        for row, column in ((top, left + i), (top + width - 1, left + i)):
            canvas[row][column] = "-"
        for row, column in ((top + i, left), (top + i, left + width - 1)):
            canvas[row][column] = "|"

def settle_debts(balances):
    """Compute payments that settle the debts of a group.

    Args:
        balances: A dictionary from names to balances.

    Returns:
        A list of payer, receiver and amount.

    Raises:
        ValueError: If the balances do not add up to zero.
    """
    if round(sum(balances.values()), 2) != 0:
        raise ValueError("balances must add up to zero")
    debtors = [[n, -b] for n, b in balances.items() if b < 0]
    return [(n, max(balances, key=balances.get), amount) for n, amount in debtors]

def switch_track(railway, junction, track):
    """Switch a junction of a railway to another track.

    Args:
        railway: The railway with its junctions.
        junction: The number of the junction.
        track: The track to use from now on.

    Raises:
        CollisionRisk: If a train is near the junction.
        KeyError: If there is no such junction.
    """
    if junction not in railway.junctions:
        raise KeyError(junction)
    if railway.trains_near(junction):
        raise CollisionRisk(junction)
    railway.junctions[junction].track = track

def describe_interval(semitones):
    """Return the name of a musical interval.

    Args:
        semitones: The size of the interval in semitones.

    Returns:
        The name of the interval.

    Raises:
        LookupError: If the interval has no simple name.
    """
    names = {0: "unison", 5: "fourth", 7: "fifth", 12: "octave"}
    try:
        return names[semitones]
    except KeyError as error:
        raise LookupError(f"{semitones} semitones") from error

def save_game(state, slot, folder, *, compress=True):
    """Save the state of a game in a slot.

    Args:
        state: The state of the game.
        slot: The number of the slot.
        folder: The folder of saved games.
        compress: Whether to compress the file.

    Returns:
        The path of the saved game.
    """
    data = json.dumps(state).encode()
    path = folder / f"slot{slot}.sav"
    path.write_bytes(zlib.compress(data) if compress else data)
    return path

def shade(color, amount):
    """Make a color darker.

    Args:
        color: The red, green and blue parts.
        amount: The share of light to remove.

    Returns:
        The darker color as a tuple.
    """
    return tuple(int(part * (1 - amount)) for part in color)

def feed_animals(zoo, hour):
    """Feed the animals whose feeding time has come.

    Args:
        zoo: The zoo with its animals.
        hour: The hour of the day.
    """
    for animal in zoo.animals:
        if hour not in animal.feeding_hours:
            continue
        animal.eat(animal.favorite_food)
        zoo.log(f"{animal.name} was fed at {hour}")

def split_camel_case(identifier: str) -> list[str]:
    """Split a name in camel case into words.

    Args:
        identifier: The name to split.

    Returns:
        The words in lower case.
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)
    return [word.lower() for word in words]

def reserve_table(restaurant, guests, time, name):
    """Reserve the smallest table that is large enough.

    Args:
        restaurant: The restaurant with its tables.
        guests: The number of guests.
        time: The time of the reservation.
        name: The name for the reservation.

    Returns:
        The number of the table.

    Raises:
        FullyBooked: If no table is free at that time.
    """
    for table in sorted(restaurant.tables, key=lambda one: one.seats):
        if table.seats >= guests and time not in table.bookings:
            table.bookings[time] = name
            return table.number
    raise FullyBooked(time)

def terminal_velocity(mass, area, drag=1.0, density=1.225):
    """Compute the terminal velocity of a falling body.

    Args:
        mass: The mass in kilograms.
        area: The area in square meters.
        drag: The drag coefficient.
        density: The density of the air.

    Returns:
        The velocity in meters per second.
    """
    force = 2 * mass * 9.81
    return math.sqrt(force / (density * area * drag))

def remove_outliers(data, limit=3.0):
    """Remove values that are far from the mean.

    Args:
        data: The values to clean.
        limit: The largest distance in standard deviations.

    Returns:
        The values within the limit.
    """
    mean = sum(data) / len(data)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in data) / len(data))
    if deviation == 0:
        return data
    return [x for x in data if abs(x - mean) / deviation <= limit]

def set_volume(self, level: int) -> None:
    """Set the volume of the speaker.

    Args:
        level: The volume from 0 to 100.

    Raises:
        ValueError: If level is not between 0 and 100.
    """
    if level not in range(101):
        raise ValueError(f"level {level} is not allowed")
    self.level = level
    self.muted = level == 0

def knit_row(yarn, stitches, pattern):
    """Knit one row of a pattern.

    Args:
        yarn: The yarn to use.
        stitches: The number of stitches in the row.
        pattern: The pattern of knit and purl stitches.

    Returns:
        The row as a string of stitches.

    Raises:
        YarnTooShort: If the yarn does not suffice for the row.
    """
    if yarn.length_cm < stitches * 2.5:
        raise YarnTooShort(stitches)
    yarn.length_cm -= stitches * 2.5
    return "".join(pattern[i % len(pattern)] for i in range(stitches))

def ping(address, timeout=2.0):
    """Measure how long a server takes to answer.

    Args:
        address: The address of the server.
        timeout: The time limit in seconds.

    Returns:
        The time in milliseconds, or None without an answer.
    """
    start = time.perf_counter()
    if not send_probe(address, timeout):
        return None
    return 1000 * (time.perf_counter() - start)

def update_leaderboard(board, name, points, size=10):
    """Enter a result into a leaderboard and keep the best.

    Args:
        board: The list of points and names.
        name: The name of the player.
        points: The points of the player.
        size: The number of entries to keep.

    Returns:
        True if the player is on the board.
    """
    board.append((points, name))
    board.sort(reverse=True)
    del board[size:]
    return (points, name) in board

def inflate_tire(tire, bar):
    """Pump up a tire to a pressure.

    Args:
        tire: The tire to pump up.
        bar: The desired pressure in bar.

    Raises:
        ValueError: If the pressure is above the limit of the tire.
    """
    if bar > tire.max_bar:
        raise ValueError(f"at most {tire.max_bar} bar")
    while tire.pressure < bar:
        tire.pressure += 0.1

def cook_rice(grams, water_ratio=2.0, salt=True):
    """Compute what is needed to cook rice.

    Args:
        grams: The amount of rice in grams.
        water_ratio: The milliliters of water per gram.
        salt: Whether salt is added.

    Returns:
        A dictionary of ingredients and amounts.
    """
    needed = {"rice": grams, "water": grams * water_ratio}
    if salt:
        needed["salt"] = grams * 0.01
    return needed

def has_winner(scores, target=21, lead=2):
    """Check whether one of two players has won.

    Args:
        scores: The points of the two players.
        target: The points needed to win.
        lead: The smallest lead over the other player.

    Returns:
        True if the game is over.
    """
    high, low = max(scores), min(scores)
    return high >= target and high - low >= lead

def ask_number(prompt, lowest, highest):
    """Ask the user for a number until it is in a range.

    Args:
        prompt: The question to show.
        lowest: The smallest allowed number.
        highest: The largest allowed number.

    Returns:
        The number that was entered.
    """
    while True:
        answer = input(prompt)
        if answer.isdigit() and lowest <= int(answer) <= highest:
            return int(answer)
        print(f"Please enter a number from {lowest} to {highest}.")

def sharpen(self, times=1):
    """Sharpen the pencil, which makes it shorter.

    Args:
        times: The number of turns.

    Returns:
        The remaining length in millimeters.

    Raises:
        PencilUsedUp: If the pencil is too short.
    """
    if self.length_mm - times < 20:
        raise PencilUsedUp
    self.length_mm -= times
    self.sharp = True
    return self.length_mm

def route_cost(route, prices):
    """Add up the prices along a route.

    Args:
        route: The stations in order.
        prices: A dictionary from pairs of stations to prices.

    Returns:
        The total price.

    Raises:
        RouteError: If two stations are not connected.
    """
    total = 0
    for start, end in zip(route, route[1:]):
        if (start, end) not in prices:
            raise RouteError(f"{start} to {end}")
        total += prices[start, end]
    return total

def log_error(logger, error, context=None):
    """Log an error with its type and context.

    Args:
        logger: The logger to use.
        error: The error that occurred.
        context: More information about the error.
    """
    details = ", ".join(f"{k}={v}" for k, v in (context or {}).items())
    logger.error("%s: %s (%s)", type(error).__name__, error, details)

def age_cheese(cheese, weeks, humidity):
    """Let a cheese age for some weeks.

    Args:
        cheese: The cheese to age.
        weeks: The time in weeks.
        humidity: The humidity of the cellar in percent.

    Returns:
        The taste from 1 for mild to 10 for strong.
    """
    cheese.weeks += weeks
    if humidity < 70:
        cheese.is_dry = True
    return min(10, 1 + cheese.weeks // 4)

def parse_move(text, board_size=8):
    """Parse a move such as "b2-b4".

    Args:
        text: The move as text.
        board_size: The number of rows of the board.

    Returns:
        The first and the last square as pairs of numbers.

    Raises:
        IllegalMove: If the text has the wrong form or leaves the board.
    """
    match = re.fullmatch(r"([a-z])(\d+)-([a-z])(\d+)", text)
    if not match:
        raise IllegalMove(text)
    numbers = [ord(match[1]) - 97, int(match[2]) - 1, ord(match[3]) - 97, int(match[4]) - 1]
    if max(numbers) >= board_size:
        raise IllegalMove("off the board")
    return tuple(numbers[:2]), tuple(numbers[2:])

def count_neighbors(cells, x, y):
    """Count the living cells around a cell.

    Args:
        cells: The set of coordinates of living cells.
        x: The column of the cell.
        y: The row of the cell.

    Returns:
        The number of living neighbors, from 0 to 8.
    """
    total = 0
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            if (dx or dy) and (x + dx, y + dy) in cells:
                total += 1
    return total

def translate(self, dx, dy):
    """Move the shape by an offset.

    Args:
        dx: The horizontal offset.
        dy: The vertical offset.

    Returns:
        The shape itself.
    """
    self.x += dx
    self.y += dy
    return self

def assert_sorted(values, key=None):
    """Verify that values are in ascending order.

    Args:
        values: The values to verify.
        key: The function that gives the value to compare.

    Raises:
        AssertionError: If two values are in the wrong order.
    """
    keys = [key(value) if key else value for value in values]
    for first, second in zip(keys, keys[1:]):
        if first > second:
            raise AssertionError(f"{first} before {second}")

def restock(shelf, product, amount, capacity=50):
    """Fill a shelf with a product up to its capacity.

    Args:
        shelf: The shelf as a dictionary of amounts.
        product: The name of the product.
        amount: The number of pieces to add.
        capacity: The largest number of pieces.

    Returns:
        The number of pieces that did not fit.
    """
    before = shelf.get(product, 0)
    shelf[product] = min(capacity, before + amount)
    return before + amount - shelf[product]

def wake_up(self):
    """Wake the device and check its battery.

    Raises:
        LowBattery: If the charge is below 5 percent.
    """
    self.screen.on()
    if self.battery.percent < 5:
        raise LowBattery(self.battery.percent)
    self.asleep = False

def next_id(self):
    """Return a new number for an entry.

    Returns:
        The new number.

    Raises:
        OverflowError: If all numbers are used up.
    """
    if self.last_id >= self.max_id:
        raise OverflowError("no more numbers")
    self.last_id += 1
    return self.last_id

def load_plugins():
    """Load all plugins from the plugin folder.

    Returns:
        A dictionary from names to plugins.

    Raises:
        PluginError: If a plugin has no entry point.
    """
    plugins = {}
    for file in PLUGIN_FOLDER.glob("*.py"):
        module = load_module(file)
        if not hasattr(module, "main"):
            raise PluginError(file.name)
        plugins[file.stem] = module
    return plugins
