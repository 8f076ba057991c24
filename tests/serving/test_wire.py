"""Messages as bytes: what goes through unchanged, and what is refused before anything is made."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from wam_jax.client import wire as codec
from wam_jax.serving import wire


def array(data=b'\0' * 8, dtype='<f4', shape=(2,)):
  return {b'__ndarray__': True, b'data': data, b'dtype': dtype, b'shape': shape}


def test_what_is_sent_arrives():
  message = {
    'image': np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    'turned': np.arange(6, dtype=np.float64).reshape(2, 3).T,
    'empty': np.zeros((0, 3), np.float32),
    'words': np.asarray(['pick', 'place \U0001f9f2']),
    'scalar': np.float32(0.5),
    'list': [1, -1, 2**40, None, True, 1.5, 'ä', b'\0\xff'],
    'map': {'in': {'deep': [[]]}},
  }
  got = codec.unpack(codec.pack(message))
  assert got.keys() == message.keys()
  for key in ('image', 'turned', 'empty', 'words', 'scalar'):
    assert got[key].dtype == message[key].dtype
    np.testing.assert_array_equal(got[key], message[key])
  assert got['list'] == message['list']
  assert got['map'] == message['map']


def test_arrays_of_other_languages_have_keys_of_text():
  named = {key.decode(): value for key, value in array(np.float32([1, 2]).tobytes()).items()}
  np.testing.assert_array_equal(codec.unpack(msgpack.packb(named)), np.float32([1, 2]))


@pytest.mark.parametrize(
  ('packed', 'said'),
  [
    (b'', 'cut short'),
    (b'\x81', 'cut short'),
    (b'\xc6\xff\xff\xff\xff', 'cut short'),
    (b'\xdd\xff\xff\xff\xff', 'more than 4096 items'),
    (b'\xdf\xff\xff\xff\xff', 'more than 4096 items'),
    (b'\x91' * 30 + b'\xc0', 'deeper in each other than 8'),
    (b'\xdc\x10\x00' + b'\x90' * 4096, 'more than 4096 items'),
    (b'\xc0\xc0', '1 bytes after its end'),
    (b'\xc1', 'extension type'),
    (b'\xd6\xff\0\0\0\0', 'extension type'),
    (b'\xc7\x05\x01abcde', 'extension type'),
    (b'\xda\xff\xff' + b'a' * 65535, 'a text of 65535 bytes is longer'),
    (b'\xa2\xff\xfe', 'is not msgpack'),
    (b'\x81\xc0\xc0', 'is not msgpack'),  # A key that is nothing.
    (msgpack.packb(array(dtype='|O')), 'dtype that is not one of'),
    (msgpack.packb(array(dtype='<f4,<f4')), 'dtype that is not one of'),
    (msgpack.packb(array(dtype="{'names':['a'],'formats':['O']}")), 'dtype that is not one of'),
    (msgpack.packb(array(dtype='<c8', shape=(1,))), 'dtype that is not one of'),
    (msgpack.packb(array(dtype='<U99999')), 'dtype that is not one of'),
    (msgpack.packb(array(dtype=['<f4'])), 'dtype that is not one of'),
    (msgpack.packb(array(b'\0\xd8\0\0', '<U1', (1,))), 'no characters'),  # Half of a pair.
    (msgpack.packb(array(b'\0\0\x11\0', '<U1', (1,))), 'no characters'),  # After the last.
    (msgpack.packb(array(shape=(3,))), 'shape .3. and dtype <f4 has 8 bytes'),
    (msgpack.packb(array(shape=(-1,))), 'no shape of at most 8 sizes'),
    (msgpack.packb(array(shape=(2**40, 0))), 'no shape of at most 8 sizes'),
    (msgpack.packb(array(shape=(2.0,))), 'no shape of at most 8 sizes'),
    (msgpack.packb(array(shape=(True, 2))), 'no shape of at most 8 sizes'),
    (msgpack.packb(array(shape=(1,) * 40)), 'no shape of at most 8 sizes'),
    (msgpack.packb(array(shape='2')), 'no shape of at most 8 sizes'),
    (msgpack.packb(array(data='text')), 'no bytes'),
    (msgpack.packb({b'__ndarray__': True}), 'dtype that is not one of'),
    (msgpack.packb({b'__npgeneric__': True, b'dtype': '|u1', b'data': 999}), 'does not fit'),
    (msgpack.packb({b'__npgeneric__': True, b'dtype': '<f4', b'data': []}), 'holds a list'),
  ],
)
def test_what_is_no_message_is_refused_with_the_reason(packed, said):
  with pytest.raises(codec.Malformed, match=said):
    codec.unpack(packed)


def test_no_object_is_sent():
  with pytest.raises(ValueError, match='array of object cannot be sent'):
    codec.pack({'a': np.asarray([None])})
  with pytest.raises(ValueError, match='A set cannot be sent'):
    codec.pack({'a': {1}})


def read(message, most_prompt=100) -> wire.Request:
  return wire.read_request(codec.pack(message), most_prompt)


def test_requests_of_the_dialects():
  plain = read({'observation/joint_position': [0.0], 'prompt': 'go'})
  assert (plain.endpoint, plain.is_enveloped, plain.session) == ('infer', False, '')
  assert plain.observation == {'observation/joint_position': [0.0]}
  assert read({'endpoint': 'anything'}).endpoint == 'infer'
  assert read({'endpoint': 'reset'}).resets is None
  assert read({'endpoint': 'reset', 'session_ids': None}).resets is None
  assert read({'endpoint': 'reset', 'session_ids': []}).resets == ()
  assert read({'endpoint': 'reset', 'session_ids': ['a', 3]}).resets == ('a', '3')
  assert read({'endpoint': 'reset', 'session_id': 'a'}).resets == ('a',)
  # One session in all the ways it is written.
  for one in ('7', 7, ['7'], np.asarray(['7']), np.int64(7), np.asarray([7])):
    assert read({'session_id': one}).session == '7'
  assert read({'env_id': 0}).session == '0'
  assert read({'reset': np.bool_(True)}).starts_over
  assert read({}).prefix_DU is None
  given = read({'prefix': np.ones((2, 3), np.float64), 'top': 1})
  np.testing.assert_array_equal(given.prefix_DU, np.ones((2, 3), np.float32))
  assert given.observation == {'top': 1}
  assert not read({'reset': False}).starts_over


@pytest.mark.parametrize(
  ('message', 'said'),
  [
    ([], 'a request is a map, not a list'),
    ({'prompt': 3}, 'prompt is a text, not a int'),
    ({'prompt': 'a' * 101}, 'the prompt has 101 characters; at most 100'),
    ({'session_id': True}, 'session_id is a text or a number, not a bool'),
    ({'session_id': ''}, 'session_id has 0 characters'),
    ({'session_ids': [[]], 'endpoint': 'reset'}, 'session_ids is a text or a number'),
    ({'reset': 'yes'}, 'reset is true or false'),
    ({'seed': '²'}, 'seed is a number from 0'),
    ({'endpoint': 3}, 'endpoint is a text'),
    ({'prefix': [[1.0]]}, r'prefix is an array \[steps, dimensions\]'),
    ({'prefix': np.zeros(3)}, r'prefix is an array \[steps, dimensions\]'),
    ({'prefix': np.asarray([['a']])}, r'prefix is an array \[steps, dimensions\]'),
  ],
)
def test_requests_that_are_wrong(message, said):
  with pytest.raises(codec.Malformed, match=said):
    read(message)
