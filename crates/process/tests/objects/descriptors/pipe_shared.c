// object: pipe that several processes write to and one reads
// status: captured
#include "object.h"

int main(void) {
    int ends[2];
    uint32_t record[2], next[3] = {0};
    CHECK(!pipe(ends));
    for (uint32_t who = 0; who < 3; who++)
        if (!fork()) {
            close(ends[0]);
            for (uint32_t count = 0;; count++) {
                uint32_t own[2] = {who, count};
                if (write(ends[1], own, 8) != 8) _exit(1);
                usleep(200);
            }
        }
    ready();
    do {
        for (int i = 0; i < 20; i++) {
            CHECK(read(ends[0], record, 8) == 8);
            CHECK(record[0] < 3);
            CHECK_EQUAL(record[1], next[record[0]]++);
        }
    } while (go_on());
    PASS();
}
