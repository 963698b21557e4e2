// object: POSIX message queues: messages of several priorities and lengths, longer than a page and empty ones among them
// status: captured
// note: when they were last used, and whose limit they count to, is not kept; noticed where the kernel has BPF and its type information
#include "object.h"

#include <fcntl.h>
#include <mqueue.h>
#include <sys/stat.h>

enum { ROOM = 10, LONGEST = 6000, PRIORITIES = 4 };

static char bytes[LONGEST];
static unsigned sent[PRIORITIES], got[PRIORITIES];

static int length_of(unsigned number) { return number % 5 == 0 ? 0 : number % 7 == 0 ? 5000 + number % 900 : 4 + number % 500; }

static void put(mqd_t queue, unsigned priority) {
    unsigned number = sent[priority]++;
    memset(bytes, number, sizeof bytes);
    memcpy(bytes, &number, 4);
    CHECK(mq_send(queue, bytes, length_of(number), priority * 1000) == 0);
}

static void take(mqd_t queue) {
    unsigned priority, highest = PRIORITIES - 1;
    while (sent[highest] == got[highest]) highest--;
    ssize_t length = mq_receive(queue, bytes, sizeof bytes, &priority);
    CHECK_EQUAL(priority, highest * 1000);
    CHECK_EQUAL(length, length_of(got[highest]));
    if (length) CHECK_EQUAL(*(unsigned *)bytes, got[highest]);
    if (length > 4) CHECK_EQUAL(bytes[length - 1], (char)got[highest]);
    got[highest]++;
}

int main(void) {
    // Where there is a place for their names, it is to look at: nothing tells of what is made there.
    CHECK(open("/dev/mqueue/made", O_CREAT | O_RDWR, 0600) == -1);
    if (errno != EROFS) CHECK_EQUAL(errno, ENOENT);
    struct mq_attr about = {.mq_maxmsg = ROOM, .mq_msgsize = LONGEST};
    umask(0);
    mqd_t queue = mq_open("/object", O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0640, &about);
    CHECK(queue != (mqd_t)-1);
    CHECK(fchown(queue, 7, 8) == 0);
    mqd_t reader = mq_open("/object", O_RDONLY);
    CHECK(reader != (mqd_t)-1);
    for (int at = 0; at < ROOM; at++) put(queue, at % PRIORITIES);
    CHECK(mq_send(queue, "", 0, 0) == -1 && errno == EAGAIN);
    ready();
    for (unsigned turn = 0; go_on(); turn++) {
        int some = 1 + turn % 6;
        for (int at = 0; at < some; at++) take(turn % 2 ? queue : reader);
        for (int at = 0; at < some; at++) put(queue, (turn * 7 + at * at) % PRIORITIES);
        struct stat stat;
        CHECK(fstat(queue, &stat) == 0 && stat.st_uid == 7 && stat.st_gid == 8 && (stat.st_mode & 0777) == 0640);
        CHECK(mq_getattr(queue, &about) == 0);
        CHECK_EQUAL(about.mq_flags, O_NONBLOCK);
        CHECK(about.mq_maxmsg == ROOM && about.mq_msgsize == LONGEST && about.mq_curmsgs == ROOM);
        CHECK(mq_getattr(reader, &about) == 0);
        CHECK_EQUAL(about.mq_flags, 0);
        CHECK(mq_send(reader, "", 0, 0) == -1 && errno == EBADF);
    }
    for (int at = 0; at < ROOM; at++) take(reader);
    CHECK(mq_receive(queue, bytes, sizeof bytes, 0) == -1 && errno == EAGAIN);
    CHECK(mq_unlink("/object") == 0);
    PASS();
}
