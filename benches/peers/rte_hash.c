/*
 * The peer of `benches/cache.rs`: DPDK's rte_hash, looked up in bulk.
 *
 * It obeys one command a line on standard input and answers each with one line:
 *   build FLOWS              a new table of that many flows; answers flows added a second
 *   run FILE OFFSET COUNT    looks up that part of a file of flow numbers (native u32); answers
 *                            look-ups a second and how many were hits
 * Keys are made from flow numbers as `benches/cache/keys.rs` makes them, and are as long. A hit
 * ends with the 64 bytes of its value fetched: bulk look-up, prefetch of the values, then a read.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>
#include <rte_malloc.h>
#include <rte_prefetch.h>

#define BURST 64
#define MISS 0x80000000u

struct key {
	uint64_t words[6];
};

/* What a flow's entry holds for the rewrite: a cache line. */
struct value {
	uint64_t words[8];
} __rte_aligned(64);

static struct rte_hash *table;
static struct value *values;

static inline void key_of(uint32_t number, struct key *key)
{
	static const uint64_t nets[] = { 0x0a000000u, 0x64400000u };
	uint64_t session = (number & ~MISS) >> 1;
	uint64_t service = 443 + (number >> 31);
	uint64_t reply = number & 1;
	uint64_t client = nets[reply] | session;
	uint64_t server = 0xc6336401u;
	uint64_t port = (1024 + session % 60000) ^ reply;
	/* All ones for a reply: exchanges both ends, without a branch. */
	uint64_t addresses = (client ^ server) & -reply;
	uint64_t ports = (port ^ service) & -reply;

	key->words[0] = reply << 48 | 17 << 8 | 4;
	key->words[1] = (client ^ addresses) << 32;
	key->words[2] = 0;
	key->words[3] = (server ^ addresses) << 32;
	key->words[4] = 0;
	key->words[5] = (port ^ ports) << 16 | (service ^ ports);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

static void fail(const char *what)
{
	fprintf(stderr, "rte_hash peer: %s: %s\n", what, rte_strerror(rte_errno));
	exit(1);
}

static void build(uint32_t flows)
{
	/* A third more room than flows: a cuckoo table does not fill up to the last place. */
	struct rte_hash_parameters parameters = {
		.name = "flows",
		.entries = flows + flows / 3 + 64,
		.key_len = sizeof(struct key),
		.hash_func = rte_hash_crc,
		.hash_func_init_val = 0x5bd1e995,
	};
	struct key key;
	double start;

	rte_hash_free(table);
	rte_free(values);
	table = rte_hash_create(&parameters);
	if (table == NULL)
		fail("rte_hash_create");
	values = rte_zmalloc("values", (size_t)flows * sizeof(*values), 64);
	if (values == NULL)
		fail("rte_zmalloc");
	start = now();
	for (uint32_t number = 0; number < flows; number++) {
		struct value *value = &values[number];

		for (int word = 0; word < 8; word++)
			value->words[word] = number;
		key_of(number, &key);
		if (rte_hash_add_key_data(table, &key, value) < 0)
			fail("rte_hash_add_key_data");
	}
	printf("%.0f\n", flows / (now() - start));
}

static void run(const char *path, size_t offset, size_t count)
{
	static struct key keys[BURST];
	const void *pointers[BURST];
	void *found[BURST];
	uint64_t hits = 0, sum = 0;
	size_t bytes = (offset + count) * sizeof(uint32_t);
	int file = open(path, O_RDONLY);
	double start, took;
	uint32_t *numbers;

	if (file < 0)
		fail("open");
	numbers = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
	if (numbers == MAP_FAILED)
		fail("mmap");
	close(file);
	for (int place = 0; place < BURST; place++)
		pointers[place] = &keys[place];
	start = now();
	for (size_t at = offset; at < offset + count; at += BURST) {
		uint64_t mask = 0;

		for (int place = 0; place < BURST; place++)
			key_of(numbers[at + place], &keys[place]);
		if (rte_hash_lookup_bulk_data(table, pointers, BURST, &mask, found) < 0)
			fail("rte_hash_lookup_bulk_data");
		for (uint64_t left = mask; left; left &= left - 1)
			rte_prefetch0(found[__builtin_ctzll(left)]);
		for (uint64_t left = mask; left; left &= left - 1) {
			struct value *value = found[__builtin_ctzll(left)];

			sum += value->words[0] ^ value->words[7];
		}
		hits += __builtin_popcountll(mask);
	}
	took = now() - start;
	munmap(numbers, bytes);
	/* `sum` is 0 for right values; it only has to be needed. */
	printf("%.0f %" PRIu64 "\n", count / took, hits + sum);
}

int main(int argc, char **argv)
{
	char line[4096], path[4096];
	size_t offset, count;
	uint32_t flows;

	if (rte_eal_init(argc, argv) < 0)
		fail("rte_eal_init");
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof(line), stdin) != NULL) {
		if (sscanf(line, "build %" SCNu32, &flows) == 1)
			build(flows);
		else if (sscanf(line, "run %4095s %zu %zu", path, &offset, &count) == 3)
			run(path, offset, count);
		else
			fail("unknown command");
	}
	return 0;
}
